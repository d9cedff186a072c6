"""`producer check`: a verdict for whatever may be wrong before a migration; it writes nothing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text

from models.errors import Incompatible, Misconfigured
from models.postgres import database as databases
from models.settings import load
from producer import embedded
from producer.broker import readiness
from producer.checks import check as checks
from producer.checks.http import Answer
from tests import variants
from tests.acceptance.conftest import Product
from tests.integration.test_probing import Endpoints, serving
from tests.short import short
from tests.standby import standby


@pytest.fixture
def school(product: Product) -> Product:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 100)
    return product


def verdicts(product: Product, **environment: str) -> dict[str, dict[str, Any]]:
    ended = product.run("check", "--json", **environment)
    assert ended.json["error"] is None, ended.err
    failed = any(check["verdict"] == "failed" for check in ended.json["checks"])
    assert (ended.status, ended.json["passed"]) == ((5, False) if failed else (0, True))
    return {check["name"]: check for check in ended.json["checks"]}


def state(product: Product) -> str:
    """All rows of the legacy tables, and all that the catalog holds."""
    queries = (
        *(f"SELECT t::text FROM {name} t" for name in ("users", "gpt_subscriptions", "projects")),
        "SELECT oid::text || relname FROM pg_class WHERE relnamespace <> 99",
        "SELECT oid::text || proname FROM pg_proc",
    )
    with product.engine.connect() as connection:
        found = [sorted(connection.scalars(text(query))) for query in queries]
    return hashlib.sha256(str(found).encode()).hexdigest()


def test_a_sound_database_passes_and_nothing_is_written(school: Product) -> None:
    before = state(school)
    found = verdicts(school)
    assert {name for name, check in found.items() if check["verdict"] == "failed"} == set()
    assert found["target tables"]["found"] == "8 will be created"
    assert found["postgresql"]["verdict"] == found["redis"]["verdict"] == "ok"
    assert found["clock"]["verdict"] == found["locks"]["verdict"] == "ok"
    assert state(school) == before


@pytest.mark.parametrize("variant", short(variants.VARIANTS, variants.PLAIN), ids=str)
def test_the_rows_that_would_be_quarantined_are_those_that_the_run_quarantines(
    product: Product, variant: variants.Variant
) -> None:
    product.environment |= variant.environment
    with product.engine.begin() as connection:
        variant.build(connection, 100)
    said = verdicts(product)["quarantined rows"]["found"]
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
    wanted = ", ".join(f"{n} {reason}" for reason, n in sorted(ended.json["quarantine"].items()))
    assert said == (wanted or "none")


@contextmanager
def lock(product: Product, statement: str) -> Iterator[None]:
    """A session that holds a lock, for long enough to be in the way."""
    with closing(psycopg2.connect(product.environment["DATABASE_URL"])) as connection:
        with connection.cursor() as cursor:
            cursor.execute(statement)
        time_out = threading.Event()
        while not time_out.wait(0.2):
            with product.engine.connect() as other:
                old = other.scalar(
                    text(
                        "SELECT count(*) FROM pg_stat_activity WHERE pid = :pid"
                        " AND xact_start < now() - make_interval(secs => :seconds)"
                    ),
                    {"pid": connection.info.backend_pid, "seconds": checks.LOCK_SECONDS},
                )
            if old:
                break
        yield


@pytest.mark.long
def test_a_lock_in_the_way_is_named_and_does_not_hold_the_check_up(school: Product) -> None:
    with lock(school, "LOCK TABLE users IN ACCESS EXCLUSIVE MODE"):
        # It says so while the lock is held.
        found = verdicts(school)
    assert found["locks"]["verdict"] == "failed"
    assert "1 sessions hold locks" in found["locks"]["found"]
    assert found["quarantined rows"]["verdict"] == "unknown"


@pytest.fixture
def guest(school: Product) -> Iterator[str]:
    """The address of a role that may read the legacy tables, and nothing else."""
    with school.engine.begin() as connection:
        connection.execute(text("CREATE ROLE guest LOGIN"))
        connection.execute(text("GRANT SELECT ON users, gpt_subscriptions, projects TO guest"))
    yield school.environment["DATABASE_URL"].replace("postgres@", "guest@")
    with school.engine.begin() as connection:
        connection.execute(text("DROP OWNED BY guest; DROP ROLE guest"))


def test_missing_privileges_are_listed(school: Product, guest: str) -> None:
    found = verdicts(school, DATABASE_URL=guest)
    assert found["privileges"]["verdict"] == "failed"
    assert "ownership of public.users" in found["privileges"]["found"]
    assert found["quarantined rows"]["verdict"] == "warning"


@pytest.mark.long
def test_sessions_that_the_role_cannot_look_into_are_not_taken_for_none(
    school: Product, guest: str
) -> None:
    with lock(school, "LOCK TABLE users IN SHARE MODE"):
        found = verdicts(school, DATABASE_URL=guest)
        with school.engine.begin() as connection:
            connection.execute(text("GRANT pg_read_all_stats TO guest"))
        seen = verdicts(school, DATABASE_URL=guest)
    for name in ("locks", "long transactions"):
        assert found[name]["verdict"] == "unknown"
        assert "pg_read_all_stats" in found[name]["hint"]
    assert seen["locks"]["verdict"] == "failed"


def on_full_disk(product: Product, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command whose home is a disk of one megabyte, in a mount namespace of its own."""
    home = product.folder / "small"
    home.mkdir(exist_ok=True)
    # Root needs no user namespace, in which it could not reach the servers' sockets.
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    enter = ["unshare", *users, "--mount", "/bin/sh", "-c"]
    mount = 'mount -t tmpfs -o size=1m none "$0"'
    if subprocess.run([*enter, mount, home], capture_output=True, check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk of his own")
    return subprocess.run(
        [*enter, f'{mount} && "$@"; end=$?; ls -A "$0" >&2; exit $end', home,
         Path(sys.executable).parent / "producer", *arguments],
        env=product.environment | {"MIGRATION_HOME": str(home)},
        cwd=product.folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_a_full_disk_is_said_before_and_leaves_no_backup_behind(school: Product) -> None:
    ended = on_full_disk(school, "check", "--json")
    found = {check["name"]: check for check in json.loads(ended.stdout)["checks"]}
    disk = found["disk for backups"]
    assert (ended.returncode, disk["verdict"]) == (5, "failed")
    assert "0.0 GB free, 1.0 GB needed" in disk["found"]
    assert found["postgresql"]["verdict"] == "ok"
    with school.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE noise AS SELECT md5(n::text) || md5((-n)::text) AS x"
                " FROM generate_series(1, 60000) AS n"
            )
        )
    ended = on_full_disk(school, "backup", str(school.folder / "small" / "safe"), "--json")
    assert ended.returncode == 1, ended.stderr
    said = json.loads(ended.stdout)["error"]
    assert "No space left" in said["message"] + said["hint"], said
    assert ended.stderr.splitlines()[-1] != "safe"


def test_a_table_in_the_way_is_named_with_its_column(school: Product) -> None:
    with school.engine.begin() as connection:
        connection.execute(text("CREATE TABLE ai_tools (id integer PRIMARY KEY)"))
    found = verdicts(school)["target tables"]
    assert found["verdict"] == "failed"
    assert "ai_tools.id is integer, but public.projects.id is" in found["found"]


@pytest.mark.long
def test_a_replica_is_no_place_to_migrate(servers: embedded.Servers, _environment: Path) -> None:
    primary = databases.create(servers.database_url)
    with standby(_environment) as replica:
        found = {check.name: check for check in checks.examine(replica, load())}
    primary.dispose()
    assert (found["writable"].verdict, found["writable"].found) == ("failed", "a replica")


def test_a_database_that_is_down_is_said(school: Product) -> None:
    found = school.run("check", "--json", DATABASE_URL="postgresql://u:secret@127.0.0.1:1/x")
    assert found.status == 5
    assert found.json["checks"][1]["verdict"] == "failed"
    assert "secret" not in found.out + found.err


def test_versions_and_sizes_below_the_guide_fail(tmp_path: Path) -> None:
    assert readiness.judge({"redis_version": "6.0.0"}).verdict == "ok"
    evicting = readiness.judge({"redis_version": "7.2.4", "maxmemory_policy": "allkeys-lru"})
    assert evicting.verdict == "warning"
    with pytest.raises(Misconfigured, match=r"5\.0\.14 is too old"):
        readiness._require_fit({"redis_version": "5.0.14"}, "REDIS_URL")
    assert checks._memory(2 * 10**9).verdict == checks._cores(1).verdict == "failed"
    assert checks._memory(4 * 10**9).verdict == checks._cores(2).verdict == "ok"
    full = checks._disk(tmp_path / "not" / "there", 10**18)
    assert full.verdict == "failed" and str(tmp_path) in full.hint
    with pytest.raises(Incompatible, match="too old"):
        databases.require_version(110000)


@pytest.mark.parametrize(
    ("form", "verdict"), [("3.1.0", "ok"), ("3.0.2", "unknown"), ("3.x", "unknown")]
)
def test_fastapi_shows_itself_by_the_form_of_its_page(
    form: str, verdict: str, servers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Answer("", 0.1, "200 OK", body=json.dumps({"openapi": form}).encode())
    monkeypatch.setattr(checks, "ask_all", lambda urls, limit: [page for _ in urls])
    settings = load().model_copy(update={"api_urls": ("http://dashboard/users",)})
    assert checks._fastapi(settings).verdict == verdict


def test_fastapi_is_unknown_where_no_page_shows_it(servers: object) -> None:
    with serving() as address:
        settings = load().model_copy(update={"api_urls": (f"{address}/fine",)})
        assert checks._fastapi(settings).verdict == "unknown"


@pytest.mark.long
def test_a_dashboard_that_drips_does_not_hold_the_check_up(
    servers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Endpoints.do_GET

    def drip(handler: Endpoints) -> None:
        handler.path = "/drips"
        answer(handler)

    monkeypatch.setattr(Endpoints, "do_GET", drip)
    with serving() as address:
        settings = load().model_copy(update={"api_urls": (f"{address}/fine",) * 3})
        # Each of the three drips on until the block ends.
        assert checks._fastapi(settings).verdict == "unknown"
