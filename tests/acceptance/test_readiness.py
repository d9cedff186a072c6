"""A Redis that answers and cannot carry a run is refused by name, before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from models.errors import MigrationError
from producer import embedded
from producer.broker import readiness
from producer.embedded import directories, programs, valkey
from tests import variants
from tests.acceptance.conftest import Product, said
from tests.conftest import address
from tests.integration.test_probing import closed_port

Start = Callable[..., str]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a Redis with settings of its own; returns its address."""
    with ExitStack() as stack:

        def begin(**settings: str) -> str:
            home = tmp_path / f"redis-{len(settings)}" / ".migration"
            stack.callback(embedded.erase, home)
            given = {name.replace("_", "-"): value for name, value in settings.items()}
            with monkeypatch.context() as patch, directories.locked(home):
                patch.setattr(valkey, "SETTINGS", valkey.SETTINGS | given)
                place = directories.prepare(home)
                valkey.run_redis(programs.valkey_program(), place)
            return address(place)

        yield begin


def clustered(start: Start) -> str:
    """A Redis in cluster mode. By default the bus of each is at the same port of the machine."""
    return start(cluster_enabled="yes", cluster_port=str(closed_port()))


def command(url: str, *words: str) -> None:
    with closing(redis.Redis.from_url(url)) as client:
        client.execute_command(*words)


def refusal(url: str) -> str:
    """What is said of a Redis that is refused, with its hint."""
    with pytest.raises(MigrationError) as refused:
        readiness.look("REDIS_URL", url)
    assert "REDIS_URL" in refused.value.message and refused.value.hint
    return f"{refused.value.message} {refused.value.hint}"


def test_a_cluster(start: Start) -> None:
    url = clustered(start)
    assert "is a cluster" in refusal(url) and "without cluster mode" in refusal(url)
    assert "cluster" in refusal(url.replace("db=0", "db=1"))


def test_a_replica(start: Start) -> None:
    url = start(replicaof="127.0.0.1 1")
    assert "is a replica" in refusal(url) and "primary" in refusal(url)
    command(url, "CONFIG", "SET", "replica-read-only", "no")
    assert "is a replica" in refusal(url)


def test_one_that_takes_no_write(start: Start) -> None:
    url = start()
    readiness.look("REDIS_URL", url)
    command(url, "CONFIG", "SET", "maxmemory", "1")
    assert "out of memory" in refusal(url) and "maxmemory" in refusal(url)
    command(url, "CONFIG", "SET", "maxmemory", "0")
    command(url, "CONFIG", "SET", "min-replicas-to-write", "3")
    assert "too few replicas" in refusal(url)
    command(url, "CONFIG", "SET", "min-replicas-to-write", "0")
    readiness.look("REDIS_URL", url)


def test_a_database_that_it_does_not_have(start: Start) -> None:
    assert "no database of that number" in refusal(start().replace("db=0", "db=99"))


def test_a_user_who_may_not_write_or_is_unknown(start: Start) -> None:
    url = start()
    command(url, "ACL", "SETUSER", "reader", "on", ">secret-word", "~*", "+@read", "+info")
    login = url.replace("unix://", "unix://reader:secret-word@")
    assert "may not run SET" in refusal(login)
    wrong = url.replace("unix://", "unix://reader:wrong-word@")
    assert "login is refused" in refusal(wrong) and "wrong-word" not in refusal(wrong)
    command(url, "ACL", "SETUSER", "narrow", "on", ">secret-word", "~migration:*", "+set", "+del",
            "+ping")  # fmt: skip
    readiness.look("REDIS_URL", url.replace("unix://", "unix://narrow:secret-word@"))


def test_one_that_evicts_is_warned_of(start: Start) -> None:
    url = start()
    command(url, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert readiness.judge(readiness.look("REDIS_URL", url)).verdict == "warning"


@pytest.mark.parametrize("variable", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_nothing_is_changed_where_broker_or_backend_is_a_cluster(
    product: Product, start: Start, variable: str
) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 50)
    url = clustered(start)
    checked = product.run("check", "--json", **{variable: url})
    rows = {check["name"]: check for check in checked.json["checks"]}
    failed = [name for name in rows if rows[name]["verdict"] == "failed"]
    assert [variable in rows[name]["found"] for name in failed if "redis" in name] == [True]
    assert checked.status == 5
    for words in (["enqueue-all"], ["retry"], ["resume"], ["rollback", "--yes"]):
        ended = product.run(*words, "--json", **{variable: url})
        assert ended.status == 2, ended.err
        assert "cluster" in ended.json["error"]["message"]
        assert variable in ended.json["error"]["message"]
    with product.engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('ai_tools')")) is None
        assert connection.scalar(text("SELECT to_regnamespace('migration')")) is None


@pytest.mark.long
def test_a_queue_that_nobody_consumes_is_named_once(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 50)
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker("-Q", "migration.users,migration.control"):
        line = said(waiting, "No worker consumes the queue")
        with product.worker():
            _, err = waiting.communicate(timeout=200)
    assert waiting.returncode == 3, err
    found = re.search(r"No worker consumes the queue (\S+) \(\d+ batch(es)? waiting\)", line)
    assert found and f"celery -A worker worker -Q {found[1]}" in line
    assert f"the queue {found[1]} " not in err
