"""Nothing that a night prints, logs or stores holds a password, or an e-mail address of a user."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
import redis
from sqlalchemy import text

from producer.embedded import directories
from tests import variants
from tests.acceptance.conftest import Product
from tests.acceptance.test_flower import LOGIN, PASSWORD, flower
from tests.conftest import address

PASSWORDS = ("db-Secret/1", "redis-Secret/2", "api-Secret/4", PASSWORD)
PAGES = ("/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks")


@pytest.fixture
def secret(product: Product, own_redis: directories.Place) -> Iterator[Product]:
    """The product with a password in each address; that of Redis is asked for."""
    database, broker, api, _ = (quote(password, safe="") for password in PASSWORDS)
    with closing(redis.Redis.from_url(address(own_redis))) as client:
        client.config_set("requirepass", PASSWORDS[1])
    url = product.environment["DATABASE_URL"].replace("postgres@", f"postgres:{database}@")
    product.environment["DATABASE_URL"] = url
    product.environment["REDIS_URL"] = address(own_redis).replace("unix://", f"unix://:{broker}@")
    product.environment["MIGRATION_API_URLS"] = f"http://me:{api}@127.0.0.1:1/x?token={api}"
    product.environment["FLOWER_BASIC_AUTH"] = ":".join(LOGIN)
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 200)
        # A row that only the database refuses, whose error quotes it.
        connection.execute(
            text(
                "UPDATE gpt_subscriptions SET gpt_id = repeat('x', 300)"
                " WHERE id = (SELECT max(id) FROM gpt_subscriptions)"
            )
        )
    yield product


@contextmanager
def watching_processes() -> Iterator[set[str]]:
    """The command lines of all processes of the machine, looked at twenty times a second."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


@pytest.mark.long
def test_a_whole_night_shows_no_secret_and_no_address(
    secret: Product, own_redis: directories.Place
) -> None:
    said: list[str] = []

    def run(*arguments: str) -> None:
        ended = secret.run(*arguments)
        said.extend((ended.out, ended.err))

    with (
        watching_processes() as processes,
        secret.worker("--loglevel=DEBUG"),
        flower(secret, "--debug=True") as (client, _),
    ):
        run("check", "--json")
        run("enqueue-all", "--wait", "--json")
        for command in ("status", "doctor", "quarantine", "health", "performance", "plan"):
            run(command, "--json")
            run(command)
        run("status", "--history", "--json")
        run("report", "--output", "night.html")
        said.append((secret.folder / "night.html").read_text())
        run("repair", "credits", "--json")
        run("retry", "--wait", "--json")
        run("rollback", "--wait", "--yes", "--json")
        run("enqueue-all", "--wait", "--json", "--debug")
        run("backup", "safe", "--json")
        run("restore", "safe", "--yes", "--json")
        stored = _redis(address(own_redis))
        said += [client.get(page, auth=LOGIN).text for page in PAGES]
        said += [path.read_text(errors="replace") for path in (secret.folder / "safe").glob("*.*")]
    # Where the servers are down, errors speak.
    secret.run("status")
    for name in ("DATABASE_URL", "REDIS_URL"):
        broken = secret.environment[name].replace("/redis.sock", "/gone.sock")
        broken = broken.replace("host=", "host=%2Fgone")
        for command in ("status", "health", "enqueue-all", "check"):
            ended = secret.run(command, "--json", "--debug", **{name: broken})
            said.extend((ended.out, ended.err))
    logs = [path.read_text(errors="replace") for path in secret.folder.glob("celery-*.log")]
    assert any("batch done" in log for log in logs)
    with secret.engine.connect() as connection:
        emails = set(connection.scalars(text("SELECT email FROM users WHERE email ~ '@'")))
        tables = connection.scalars(
            text("SELECT tablename::text FROM pg_tables WHERE schemaname = 'migration'")
        ).all()
        ledger = [
            str(connection.scalars(text(f"SELECT t::text FROM migration.{table} t")).all())
            for table in tables
        ]
    assert len(emails) > 100 and len(ledger) > 8 and len(said) > 30
    assert any("pg_dump" in command for command in processes)
    everything = "\n".join([*said, *logs, *ledger, *stored, *processes])
    for password in PASSWORDS:
        assert password not in everything
        assert quote(password, safe="") not in everything
    shown = [email for email in emails if email in everything]
    assert shown == []


def test_a_traceback_shows_where_and_quotes_no_row(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 100)
    with product.worker():
        assert product.run("enqueue-all", "--wait").status == 3
    with product.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE users SET credits_balance = 1")
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'not %%', NEW.email USING DETAIL = NEW.full_name; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        emails = connection.exec_driver_sql("SELECT email FROM users WHERE email ~ '@'").scalars()
        shown = set(emails)
    failed = product.run("repair", "credits", "--debug", "--json")
    assert failed.status == 1 and "repairs.py" in failed.err, failed.err
    assert "RaiseException" in failed.err and "psycopg2" in failed.err
    assert [email for email in shown if email in failed.err + failed.out] == []


def _redis(url: str) -> list[str]:
    """All that Redis holds, as it lies there."""
    found = []
    with closing(redis.Redis.from_url(url, password=PASSWORDS[1])) as client:
        for key in client.scan_iter():
            found += [repr(key), repr(client.dump(key))]
    return found


def test_the_statistics_of_a_worker_hold_no_password(
    run_alone: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Flower shows them, and `celery inspect stats`; a worker answers when it comes to it."""
    broker = quote(PASSWORDS[1], safe="")
    shown = run_alone(
        "import worker; print(worker.celery.connection_for_read().info())",
        REDIS_URL=f"unix://:{broker}@{tmp_path}/redis.sock?db=0",
    )
    assert "redis.sock" in shown.stdout, shown.stderr
    assert broker not in shown.stdout and PASSWORDS[1] not in shown.stdout
