"""The product behind TLS, under the least privileges that deploy/ describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
import redis
from psycopg2 import errors

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle
from tests.acceptance.conftest import Product, batches, count, kill_group
from tests.acceptance.test_flower import LOGIN, flower
from tests.application import Application, Traffic
from tests.system.secured import DATA_QUEUES, PRODUCER, WORKER, Site
from tests.system.servers import ADMINISTRATOR, REDIS_USER, redis_address
from tests.wait import until

SMALL = {"MIGRATION_BATCH_SIZE": "50"}
# Many commands after each other, each of which starts Python and three TLS connections.
pytestmark = pytest.mark.timeout(600)


def wrong_rows(product: Product, before: oracle.Snapshot) -> list[str]:
    with product.engine.connect() as connection:
        return oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS))


def values(site: Site, query: str) -> list[object]:
    with site.product.engine.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())


@contextmanager
def writing(product: Product) -> Iterator[Traffic]:
    """The old application, as the owner of the tables that knows nothing of the roles."""
    traffic = Traffic(Application(product.engine, seed=7), 40)
    traffic.application.spare()
    traffic.start()
    try:
        yield traffic
    finally:
        traffic.stop()


def test_a_run_and_its_rollback_pass_under_the_roles_with_kills_and_live_writes(site: Site) -> None:
    product = site.product
    with product.engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    site.prepare()
    with site.workers():
        with (
            product.worker("-Q", DATA_QUEUES, "-n", "victim@%h", **site.as_worker) as victim,
            writing(product) as traffic,
        ):
            run = product.start("enqueue-all", "--wait", "--json", **SMALL)
            until(lambda: batches(product, "done") > 20)
            kill_group(victim)
            out, err = run.communicate(timeout=300)
        assert run.returncode == 3, err
        assert json.loads(out)["verification"]["differences"] == 0
        assert sum(traffic.application.done.values()) > 50 and not traffic.application.refused
        # What was written after the end comes with the next run.
        again = product.run("enqueue-all", "--wait", "--json")
        assert again.status == 3, again.err
        assert wrong_rows(product, before) == []
        for command in ("doctor", "verify --wait", "reconcile --wait", "repair tools", "health"):
            ended = product.run(*command.split(), "--json")
            assert ended.json["error"] is None, (command, ended.err)
        undone = product.run("rollback", "--wait", "--yes", "--json")
        assert (undone.json["state"], undone.json["standing"]) == ("rolled_back", []), undone.err
    assert count(product, "SELECT count(*) FROM migration.batches WHERE state = 'failed'") == 0


def test_the_workers_role_cannot_read_secrets_nor_touch_anything_else(site: Site) -> None:
    site.prepare()
    refused = [
        "SELECT hashed_password FROM users",
        "SELECT api_key FROM users",
        "SELECT full_name FROM users",
        "SELECT * FROM users",
        "UPDATE users SET email = 'x'",
        "UPDATE users SET role = 'admin'",
        "DELETE FROM users",
        "INSERT INTO users (id, email) VALUES ('x', 'x')",
        "DELETE FROM gpt_subscriptions",
        "UPDATE projects SET user_id = 'x'",
        "UPDATE organizations SET name = 'x'",
        "INSERT INTO marketplace_listings (id, tool_id, title) VALUES ('x', 'x', 'x')",
        "SELECT count(*) FROM migration.audit",
        "INSERT INTO migration.audit (actor, origin, action) VALUES ('x', 'x', 'x')",
        "DELETE FROM migration.schema_objects",
        "CREATE TABLE x (y int)",
        "CREATE TABLE migration.x (y int)",
        "ALTER TABLE users DISABLE TRIGGER ALL",
        "SET ROLE dashboard",
        "COPY users TO PROGRAM 'true'",
    ]
    with closing(psycopg2.connect(site.as_worker["DATABASE_URL"])) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in refused:
                with pytest.raises(errors.InsufficientPrivilege):
                    cursor.execute(statement)
            cursor.execute("SELECT count(email) FROM users")
            assert cursor.fetchone()[0] > 1_900


def test_what_the_producer_makes_belongs_to_the_application_and_the_audit_knows_who(
    site: Site,
) -> None:
    site.prepare()
    owners = (
        "SELECT DISTINCT tableowner::text FROM pg_tables"
        " WHERE schemaname IN ('public', 'migration')"
    )
    who = "SELECT DISTINCT role FROM migration.audit"
    assert (values(site, owners), values(site, who)) == (["dashboard"], [PRODUCER])


def test_granting_again_takes_back_what_somebody_granted_by_hand(site: Site) -> None:
    site.prepare()
    site.servers.execute("GRANT SELECT (api_key) ON users TO {}", WORKER, database=site.database)
    site.servers.execute("GRANT DELETE ON projects TO {}", WORKER, database=site.database)
    site.grant()
    query = (
        f"SELECT has_column_privilege('{WORKER}', 'users', name, 'SELECT')"
        " FROM unnest(ARRAY['email', 'api_key']) AS name"
    )
    assert values(site, query) == [True, False]
    query = f"SELECT has_table_privilege('{WORKER}', 'projects', 'DELETE')"
    assert values(site, query) == [False]


def test_a_certificate_of_another_authority_is_refused_by_every_client(site: Site) -> None:
    site.prepare()
    certificates = site.servers.postgres.certificates
    url = site.product.environment["DATABASE_URL"]
    wrong = {"DATABASE_URL": url.replace(str(certificates.ca), str(certificates.other_ca))}
    ended = site.product.run("status", "--json", **wrong)
    assert (ended.status, ended.json["error"]["kind"]) == (1, "unreachable")
    assert "its certificate cannot be verified" in ended.json["error"]["message"]
    wrong = {"REDIS_URL": redis_address(site.servers.redis, certificates.other_ca)}
    checks = site.product.run("health", "--json", **wrong).json["checks"]
    (found,) = (check for check in checks if check["name"] == "redis")
    assert found["verdict"] == "failed" and "its certificate cannot be verified" in found["found"]
    # Celery's own broker connection, and without a word about certificates in the address.
    for address in (wrong["REDIS_URL"], wrong["REDIS_URL"].partition("?")[0]):
        with site.product.worker(REDIS_URL=address) as worker:
            log = site.product.folder / f"celery-{len(site.product.workers) - 1}.log"
            until(lambda log=log: "its certificate cannot be verified" in log.read_text())
            assert "ready" not in log.read_text()
            kill_group(worker)


def test_a_server_of_another_name_is_refused(site: Site) -> None:
    # The certificate is for localhost.
    url = site.product.environment["DATABASE_URL"].replace("@localhost:", "@127.0.0.1:")
    ended = site.product.run("status", "--json", DATABASE_URL=url)
    assert ended.json["error"]["kind"] == "unreachable"
    assert "its certificate is for another host name" in ended.json["error"]["message"]
    url = site.product.environment["REDIS_URL"].replace("@localhost:", "@127.0.0.1:")
    ended = site.product.run("check", "--json", REDIS_URL=url)
    (found,) = (check for check in ended.json["checks"] if check["name"] == "redis")
    assert found["verdict"] == "failed" and "certificate" in found["found"].lower()


def test_the_redis_user_reaches_its_own_keys_and_commands_only(site: Site) -> None:
    url = redis_address(site.servers.redis, site.servers.redis.certificates.ca)
    refused: list[tuple[object, ...]] = [
        ("GET", "session:1"),
        ("SET", "session:1", "x"),
        ("DEL", "session:1"),
        ("PUBLISH", "other", "x"),
        ("EVAL", "return redis.call('get', KEYS[1])", 1, "session:1"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("FUNCTION", "FLUSH"),
        ("SCRIPT", "FLUSH"),
    ]
    with closing(redis.Redis.from_url(url)) as client:
        client.set("migration:probe", "x", ex=60)
        for command in refused:
            with pytest.raises(redis.ResponseError) as failure:
                client.execute_command(*command)
            assert "permission" in str(failure.value).lower(), command
    without = url.replace(f"{REDIS_USER}:", "")
    with closing(redis.Redis.from_url(without)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_flower_works_under_the_rules_of_redis(site: Site) -> None:
    auth = {"FLOWER_BASIC_AUTH": ":".join(LOGIN)}
    with site.product.worker("-n", "one@%h"), flower(site.product, **auth) as (client, _):
        until(lambda: "one@" in client.get("/api/workers?refresh=1", auth=LOGIN).text)
        assert "migration.users" in client.get("/broker", auth=LOGIN).text


def test_what_needs_more_than_the_roles_and_rules_give_is_said_by_name(site: Site) -> None:
    site.prepare()
    ca = site.servers.redis.certificates.ca
    administrator = redis_address(site.servers.redis, ca, ADMINISTRATOR)
    with closing(redis.Redis.from_url(administrator)) as client:
        client.set("session:1", "x")
    refused = site.product.run("backup", "safe", "--json")
    assert (refused.status, refused.json["error"]["kind"]) == (1, "not_allowed")
    assert "its user may not do that" in refused.json["error"]["message"]
    assert not (site.product.folder / "safe").exists()
    made = site.product.run("backup", "safe", "--json", REDIS_URL=administrator)
    assert made.status == 0, made.err
    planned = site.product.run("plan", "--json").json["error"]
    assert "permission denied for database" in planned["message"], planned
    restored = site.product.run("restore", "safe", "--yes", "--json", REDIS_URL=administrator)
    assert restored.json["error"] is None, restored.err
    assert values(site, "SELECT count(*) FROM users")[0] == 2_000


def test_the_roles_go_without_a_trace_and_without_a_row(site: Site) -> None:
    site.prepare()
    with site.workers():
        assert site.product.run("enqueue-all", "--wait").status == 3
    counted = "SELECT count(*) FROM ai_tools UNION ALL SELECT count(*) FROM migration.batches"
    before = values(site, counted)
    for role in (WORKER, PRODUCER):
        site.servers.execute("DROP OWNED BY {}", role, database=site.database)
        site.servers.execute("DROP ROLE {}", role)
    assert values(site, counted) == before


def test_tls_is_the_only_way_in(site: Site) -> None:
    url = site.product.environment["DATABASE_URL"].replace("verify-full", "disable")
    ended = site.product.run("status", "--json", DATABASE_URL=url)
    assert ended.json["error"]["kind"] == "unreachable"
    assert "without encryption" in ended.json["error"]["message"]
