"""A backup is refused by name where its role could not restore it, and comes back whole otherwise.

Each case is a database as somebody may have it; the superuser, or the owner of the database and of
the legacy tables, makes a backup, migrates, and restores.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from models.postgres import database as databases
from models.settings import Settings
from producer.backup import clients, create, restore
from producer.backup.restorable import NotRestorable
from tests import variants
from tests.driving import change, whole_run
from tests.short import short

USERS = 40
pytestmark = pytest.mark.usefixtures("bare")
LEGACY = ("users", "gpt_subscriptions", "projects")
ROLES = ("restoring_owner", "restoring_other", "restoring_member")

SUPERUSER = {
    "a publication": "CREATE PUBLICATION dbz FOR TABLE users, projects",
    "a publication of all": "CREATE PUBLICATION everything FOR ALL TABLES",
    "a publication of a schema": "CREATE PUBLICATION mine FOR TABLES IN SCHEMA public",
    "a foreign server": "CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER"
    " postgres_fdw OPTIONS (host 'x'); CREATE USER MAPPING FOR postgres SERVER other OPTIONS"
    " (user 'somebody', password 'secret'); CREATE FOREIGN TABLE far (n int) SERVER other",
    "an own wrapper": 'CREATE FOREIGN DATA WRAPPER "odd one"; CREATE SERVER "odd server"'
    ' FOREIGN DATA WRAPPER "odd one"; COMMENT ON SERVER "odd server" IS \'mine\'',
    "extensions": "CREATE EXTENSION citext; CREATE EXTENSION pg_stat_statements;"
    " CREATE SCHEMA side; CREATE EXTENSION hstore SCHEMA side; COMMENT ON EXTENSION hstore IS 'x';"
    " CREATE TABLE side.pairs (pair side.hstore, name public.citext PRIMARY KEY);"
    " INSERT INTO side.pairs VALUES ('a=>1', 'A');"
    " GRANT SELECT ON pg_stat_statements TO restoring_other",
    "an event trigger": "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS"
    " 'BEGIN RAISE DEBUG ''x''; END'; CREATE EVENT TRIGGER watching ON ddl_command_end"
    " EXECUTE FUNCTION watch()",
    "casts": "CREATE TYPE mood AS ENUM ('good'); CREATE FUNCTION mood_of(int) RETURNS mood"
    " LANGUAGE sql IMMUTABLE AS $$SELECT 'good'::mood$$; CREATE CAST (int AS mood) WITH FUNCTION"
    " mood_of(int); CREATE CAST (bytea AS text) WITH INOUT AS ASSIGNMENT",
    "large objects": "SELECT lo_from_bytea(0, 'content'); SELECT lo_from_bytea(4711, 'more');"
    " COMMENT ON LARGE OBJECT 4711 IS 'mine'; GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC",
    "a language": "CREATE FUNCTION handle() RETURNS language_handler LANGUAGE c AS"
    " '$libdir/plpgsql', 'plpgsql_call_handler'; CREATE TRUSTED LANGUAGE other HANDLER handle;"
    " CREATE FUNCTION one() RETURNS int LANGUAGE other AS 'BEGIN RETURN 1; END'",
    "an access method": "CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler;"
    " CREATE TABLE odd (n int) USING other_heap",
    "owners": "CREATE SCHEMA theirs AUTHORIZATION restoring_other; CREATE TABLE theirs.notes"
    " (n int); ALTER TABLE theirs.notes OWNER TO restoring_other; CREATE TABLE notes (id int);"
    " GRANT SELECT ON notes TO PUBLIC; GRANT USAGE ON SCHEMA theirs TO PUBLIC",
    "default privileges": "CREATE TABLE first (n int);"
    " ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO restoring_other;"
    " ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;"
    " CREATE TABLE second (n int); CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "a changed schema public": "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
    " COMMENT ON SCHEMA public IS 'mine'; GRANT CREATE ON SCHEMA public TO restoring_other",
    "no schema public": "ALTER SCHEMA public RENAME TO moved; ALTER DATABASE {db} SET search_path"
    " TO moved",
    "many kinds": "CREATE AGGREGATE total (int) (sfunc = int4pl, stype = int);"
    " CREATE TYPE pair AS (a int, b int); CREATE TYPE span AS RANGE (subtype = date);"
    " CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE PROCEDURE act() LANGUAGE sql AS ''"
    "; CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq);"
    " CREATE OPERATOR FAMILY family USING btree; CREATE COLLATION odd (locale = 'C');"
    " CREATE TEXT SEARCH CONFIGURATION words (COPY = simple); CREATE STATISTICS pairs ON id, email"
    " FROM users; CREATE VIEW people AS SELECT id FROM users; CREATE MATERIALIZED VIEW counted AS"
    " SELECT count(*) FROM users; CREATE RULE quiet AS ON INSERT TO people DO INSTEAD NOTHING;"
    " CREATE TABLE parts (n int, d date) PARTITION BY RANGE (n); CREATE TABLE part PARTITION OF"
    " parts FOR VALUES FROM (0) TO (9); CREATE POLICY mine ON users USING (true);"
    " CREATE SEQUENCE alone; SELECT nextval('alone'); ALTER TABLE users REPLICA IDENTITY FULL",
}
SUPERUSER["most of it together"] = "; ".join(
    statements
    for name, statements in SUPERUSER.items()
    if name not in ("default privileges", "a changed schema public", "no schema public")
)
# As the owner of the database and of the legacy tables; what a superuser set up beside them.
OWNER = {
    "plain": "SELECT 1",
    "extensions of a superuser": SUPERUSER["extensions"].split("CREATE TABLE")[0]
    + "GRANT SELECT ON pg_stat_statements TO restoring_other",
    "a publication of all": SUPERUSER["a publication of all"],
    "a foreign server": "CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER"
    " postgres_fdw OPTIONS (host 'x')",
    "a schema of another owner": "CREATE SCHEMA theirs AUTHORIZATION restoring_other",
    "a table of a role that it is member of": "CREATE TABLE shared (n int); ALTER TABLE shared"
    " OWNER TO restoring_member; GRANT CREATE ON SCHEMA public TO restoring_member",
    "default privileges of another": "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON"
    " TABLES TO restoring_other",
    "its own publication": "CREATE PUBLICATION own FOR TABLE users; ALTER PUBLICATION own OWNER TO"
    " restoring_owner",
}
OWNER["all of it together"] = "; ".join(OWNER.values())
REFUSED = {
    "table public.notes: it belongs to postgres": "CREATE TABLE notes (id int); GRANT SELECT ON"
    " notes TO PUBLIC",
    "table theirs.notes": "CREATE SCHEMA theirs AUTHORIZATION restoring_other; CREATE TABLE"
    " theirs.notes (n int); ALTER TABLE theirs.notes OWNER TO restoring_other; GRANT SELECT ON"
    " theirs.notes TO restoring_owner; GRANT USAGE ON SCHEMA theirs TO restoring_owner",
    "view public.people": "CREATE VIEW people AS SELECT id FROM users",
    "publication dbz: it belongs to postgres": SUPERUSER["a publication"],
    "event trigger watching": SUPERUSER["an event trigger"],
    "function public.one()": "CREATE FUNCTION one() RETURNS int LANGUAGE sql LEAKPROOF AS"
    " 'SELECT 1'; ALTER FUNCTION one() OWNER TO restoring_owner",
    "large object 4711": "SELECT lo_from_bytea(4711, 'x'); GRANT SELECT ON LARGE OBJECT 4711 TO"
    " PUBLIC",
    "cast (pg_catalog.bytea AS": "CREATE CAST (bytea AS text) WITH INOUT AS ASSIGNMENT",
    "a privilege on it was granted by restoring_member": "GRANT SELECT ON users TO"
    " restoring_member WITH GRANT OPTION; SET ROLE restoring_member; GRANT SELECT ON users TO"
    " restoring_other; RESET ROLE",
}


def build(engine: Engine, statements: str, owner: str | None) -> None:
    with engine.begin() as connection:
        for role in ROLES:
            connection.execute(
                text(
                    f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN"
                    " NULL; END $$"
                )
            )
        connection.execute(text("GRANT restoring_member TO restoring_owner"))
        variants.PLAIN.build(connection, USERS)
        name = connection.scalar(text("SELECT current_database()"))
        if owner:
            connection.execute(text(f"ALTER DATABASE {name} OWNER TO {owner}"))
            connection.execute(text(f"ALTER SCHEMA public OWNER TO {owner}"))
            for table in LEGACY:
                connection.execute(text(f"ALTER TABLE {table} OWNER TO {owner}"))
            for kind in connection.scalars(
                text("SELECT typname FROM pg_type WHERE typtype = 'e'")
            ).all():
                connection.execute(text(f"ALTER TYPE {kind} OWNER TO {owner}"))
    change(engine, statements.replace("{db}", str(name)))


@contextmanager
def connected(url: str, role: str) -> Iterator[tuple[str, Engine]]:
    own = url.replace("postgres@", f"{role}@")
    engine = databases.create(own)
    try:
        yield own, engine
    finally:
        engine.dispose()


def catalog(url: str) -> str:
    programs = clients.find(180000)
    ended = subprocess.run(
        [programs.folder / "pg_dump", "--schema-only", "--restrict-key=x", url],
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout


def put_back(engine: Engine, url: str, redis_url: str, folder: Path) -> None:
    planned = restore.plan(engine, {"redis": redis_url}, folder)
    restore.put_back(engine, url, planned, folder, print)


def prove(url: str, redis_url: str, settings: Settings, role: str, folder: Path) -> None:
    """Back up, migrate, restore, as the role; catalog and rows must be as they were."""
    before = catalog(url)
    with connected(url, role) as (own, engine):
        made = create.make(engine, own, {"redis": redis_url}, folder / "safe", None, print)
        whole_run(engine, settings)
        change(engine, "CREATE TABLE later (n int); CREATE SCHEMA later; SELECT lo_creat(-1)")
        put_back(engine, own, redis_url, folder / "safe")
        with engine.connect() as connection, connection.begin():
            assert create.describe(connection)["tables"] == made["tables"]
        # And once more: nothing of the first restore is in the way.
        put_back(engine, own, redis_url, folder / "safe")
    assert catalog(url) == before


@pytest.mark.parametrize("case", short(SUPERUSER, "default privileges"))
def test_a_superuser_puts_everything_back(
    database: str, redis_url: str, settings: Settings, tmp_path: Path, case: str
) -> None:
    with connected(database, "postgres") as (_, engine):
        build(engine, SUPERUSER[case], None)
    prove(database, redis_url, settings, "postgres", tmp_path)


@pytest.mark.parametrize("case", short(OWNER, "plain", "all of it together"))
def test_the_owner_puts_back_what_it_owns_and_leaves_the_rest_as_it_is(
    database: str, redis_url: str, settings: Settings, tmp_path: Path, case: str
) -> None:
    with connected(database, "postgres") as (_, engine):
        build(engine, OWNER[case], "restoring_owner")
    prove(database, redis_url, settings, "restoring_owner", tmp_path)


@pytest.mark.long
def test_an_older_server_is_judged_and_restored_alike(
    old_database: str, redis_url: str, settings: Settings, tmp_path: Path
) -> None:
    with connected(old_database, "postgres") as (_, engine):
        build(engine, OWNER["a publication of all"], "restoring_owner")
    prove(old_database, redis_url, settings, "restoring_owner", tmp_path)


def test_a_subscription_is_refused_for_any_role(
    database: str, redis_url: str, tmp_path: Path
) -> None:
    with connected(database, "postgres") as (own, engine):
        change(
            engine,
            "CREATE SUBSCRIPTION remote CONNECTION 'host=nowhere' PUBLICATION x"
            " WITH (connect = false, slot_name = NONE)",
        )
        with pytest.raises(NotRestorable, match="subscription remote"):
            create.make(engine, own, {"redis": redis_url}, tmp_path / "safe", None, print)
        change(engine, "DROP SUBSCRIPTION remote")


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_owner_could_not_put_back_is_named_before_anything_is_written(
    database: str, redis_url: str, tmp_path: Path, what: str
) -> None:
    with connected(database, "postgres") as (_, engine):
        build(engine, REFUSED[what], "restoring_owner")
    with (
        connected(database, "restoring_owner") as (own, engine),
        pytest.raises(NotRestorable) as refused,
    ):
        create.make(engine, own, {"redis": redis_url}, tmp_path / "safe", None, print)
    assert what in refused.value.message and "restoring_owner" in refused.value.message
    assert not list(tmp_path.iterdir())
