"""`check` proves that a run will go through: what is in its way is named, and nothing changes."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url

from models.errors import Incompatible, MigrationError, Transient
from models.postgres import database as databases
from models.reports.checks import Check
from models.settings import Settings
from producer.checks import check as checks
from producer.checks import plan, preflight, trial
from producer.embedded import programs
from producer.reports import terminal
from producer.schema import upgrade
from tests import oracle
from tests.driving import change, scalar, start, whole_run
from tests.integration.obstacles import CASES, FINE, REFUSED, WARNED, Case
from tests.integration.test_mapping import MAPPING, OTHER_COLUMNS, mapped
from tests.short import short
from tests.variants import INTEGER, PLAIN, USERS_ONLY, VARIANTS, Variant

USERS = 100
pytestmark = pytest.mark.usefixtures("bare")
# A whole run each in `make test`; after all others in `make test-all`.
SHORT = ("a check that all rows satisfy", "one suite a name", "keys of a fixed width", "no user")
_CATALOG = """
SELECT md5(string_agg(found, ',' ORDER BY found)) FROM (
  SELECT c.oid::text || c.relname || c.relnatts || c.relhastriggers AS found FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname NOT LIKE 'pg\\_%'
  UNION ALL SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_temp%'
  UNION ALL SELECT typname FROM pg_type WHERE typtype = 'e'
  UNION ALL SELECT oid::text || proname FROM pg_proc
  UNION ALL SELECT oid::text || tgname FROM pg_trigger
  UNION ALL SELECT md5(string_agg(u::text, ',' ORDER BY id)) FROM {users} u
  UNION ALL SELECT md5(string_agg(s::text, ',' ORDER BY id)) FROM {subscriptions} s
  UNION ALL SELECT md5(string_agg(p::text, ',' ORDER BY id)) FROM {projects} p
) AS traces
"""


@pytest.fixture
def world(database: str) -> Iterator[Engine]:
    """An empty database whose operator is no superuser, and owns all that is made in it."""
    root = databases.create(database)
    with root.begin() as connection:
        connection.exec_driver_sql(
            "DO $$ BEGIN IF to_regrole('operator') IS NULL THEN CREATE ROLE operator LOGIN;"
            " CREATE ROLE somebody; END IF; END $$"
        )
        name = make_url(database).database
        connection.exec_driver_sql(f'GRANT ALL ON DATABASE "{name}" TO operator')
        connection.exec_driver_sql("ALTER SCHEMA public OWNER TO operator")
    yield root
    root.dispose()


def as_operator(world: Engine, database: str) -> Engine:
    return databases.create(database.replace("postgres@", "operator@"))


def build(world: Engine, variant: Variant, script: str = "", users: int = USERS) -> None:
    with world.begin() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE operator")
        variant.build(connection, users)
        connection.exec_driver_sql("RESET ROLE")
    if script:
        with world.begin() as connection:
            # Not every statement of a script may be the operator's: owners, publications.
            connection.exec_driver_sql(script.replace("%", "%%"))
    with world.begin() as connection:
        connection.exec_driver_sql(
            "DO $$ DECLARE r record; BEGIN FOR r IN SELECT oid::regclass AS name FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND relowner = 'postgres'::regrole"
            " AND relkind IN ('r', 'v') LOOP EXECUTE format('ALTER TABLE %%s OWNER TO operator',"
            " r.name); END LOOP; END $$"
        )


def named(variant: Variant, settings: Settings) -> Settings:
    names = variant.names
    return settings.model_copy(
        update={
            "users_table": names.users,
            "subscriptions_table": names.subscriptions,
            "projects_table": names.projects,
            "batch_size": "100",
        }
    )


def traces(engine: Engine, settings: Settings) -> str:
    query = _CATALOG.format(
        users=settings.users_table,
        subscriptions=settings.subscriptions_table,
        projects=settings.projects_table,
    )
    return str(scalar(engine, query))


def looked(engine: Engine, settings: Settings) -> dict[str, Check]:
    found = {check.name: check for check in checks._database(engine, settings)}
    for name in ("disk of the database", "clock", "long transactions", "locks", "quarantined rows"):
        found.pop(name, None)
    return found


def said(found: dict[str, Check], verdict: str) -> str:
    return "; ".join(check.found for check in found.values() if check.verdict == verdict)


def by_name(case: object) -> str | None:
    return case.name.replace(" ", "_") if isinstance(case, Case) else None


@pytest.mark.parametrize("case", CASES, ids=by_name)
def test_what_check_says_is_what_a_run_is_told_before_it_begins(
    case: Case, world: Engine, database: str, settings: Settings
) -> None:
    build(world, case.variant, case.script)
    settings = named(case.variant, settings)
    engine = as_operator(world, database)
    before = traces(world, settings)
    found = looked(engine, settings)
    assert traces(world, settings) == before
    failed, warned = said(found, "failed"), said(found, "warning")
    assert failed or said(found, "unknown") == ""
    if case.verdict == REFUSED:
        assert case.word in failed, found
        with pytest.raises(MigrationError) as refused:
            preflight.require(engine, settings)
        assert "Nothing was changed" in refused.value.hint
    else:
        assert not failed, found
        assert case.word in warned
        preflight.require(engine, settings)
    assert traces(world, settings) == before
    engine.dispose()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case.name in SHORT else pytest.mark.long)
        for case in CASES
        if case.verdict != REFUSED
    ],
    ids=by_name,
)
def test_a_run_ends_well_where_check_finds_nothing_in_its_way(
    case: Case, world: Engine, database: str, settings: Settings
) -> None:
    build(world, case.variant, case.script)
    settings = named(case.variant, settings)
    engine = as_operator(world, database)
    with world.connect() as connection:
        snapshot = oracle.snapshot(connection, case.variant.names)
    preflight.require(engine, settings)
    upgrade.upgrade(engine, settings)
    preflight.require(engine, settings, before=trial.Trial())
    ended = whole_run(engine, settings)
    assert ended.state in ("completed", "completed_with_quarantine"), ended.error
    with world.connect() as connection:
        wrong = oracle.compare_now(connection, snapshot, dict(settings.credit_grants))
    engine.dispose()
    if case.verdict == FINE:
        assert wrong == []
    assert case.verdict in (FINE, WARNED)


def test_a_deferred_trigger_that_refuses_one_row_is_a_warning_with_its_name(
    world: Engine, database: str, settings: Settings
) -> None:
    build(
        world,
        PLAIN,
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id ="
        " (SELECT min(id) FROM public.users) THEN RAISE EXCEPTION 'no: %', NEW; END IF;"
        " RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON users"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late()",
    )
    engine = as_operator(world, database)
    for _ in ("on copies", "on the tables"):
        found = looked(engine, settings)["trial"]
        assert (found.verdict, "refuses 1 of" in found.found) == ("warning", True), found
        assert "function late" in found.found and "no:" not in found.found
        upgrade.upgrade(engine, settings)
    engine.dispose()


def test_a_trigger_on_what_is_made_later_is_found_after_the_schema_step(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    engine = as_operator(world, database)
    assert not preflight.require(engine, settings).is_real
    upgrade.upgrade(engine, settings)
    change(world, "ALTER TABLE ai_suites ADD CONSTRAINT c CHECK (name = 'x')")
    with pytest.raises(Incompatible, match="constraint c") as refused:
        preflight.require(engine, settings, before=trial.Trial())
    assert "producer schema downgrade" in refused.value.hint
    engine.dispose()


def test_a_trial_leaves_no_dead_rows_before_which_a_run_would_insert_its_own(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    engine = as_operator(world, database)
    upgrade.upgrade(engine, settings)
    assert trial.run(engine, settings).is_real
    for table in ("ai_tools", "tool_usage_logs", "credit_logs", "migration.before_images"):
        assert scalar(world, f"SELECT pg_relation_size('{table}')") == 0, table
    engine.dispose()


def test_rows_that_the_application_adds_meanwhile_do_not_count_against_a_trial(
    world: Engine, settings: Settings
) -> None:
    build(world, PLAIN)
    upgrade.upgrade(world, settings)
    added = (
        "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
        " SELECT 'new' || id, id, 'math_tutor', 'active' FROM users"
    )
    done: list[str] = []

    def add(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "INSERT INTO" in statement and "ai_suites" in statement and not done:
            done.append(added)
            change(world, added)

    event.listen(world, "after_cursor_execute", add)
    found = trial.run(world, settings)
    assert (done, found.is_real, found.obstacles) == ([added], True, [])


def test_a_second_trial_takes_what_its_users_have_got_since_the_first(
    world: Engine, settings: Settings
) -> None:
    build(world, PLAIN)
    upgrade.upgrade(world, settings)
    first = trial.run(world, settings).picked
    assert first
    user, other = first.of("user")[0], scalar(world, "SELECT max(id) FROM users")
    change(
        world,
        "INSERT INTO projects (id, user_id, name, status, active_gpt_id)"
        f" VALUES ('new', '{user}', 'new', 'active', 'math_tutor');"
        f" UPDATE projects SET user_id = '{other}' WHERE id = '{first.of('project')[0]}'",
    )
    second = trial.run(world, settings, first)
    assert second.picked
    assert set(second.picked.of("user")) == set(first.of("user"))
    then, now = set(first.of("project")), set(second.picked.of("project"))
    assert (now - then, then - now) == ({"new"}, {first.of("project")[0]} - now)
    assert (other in first.of("user")) == (first.of("project")[0] in now)
    assert second.obstacles == []


def test_no_trial_is_made_while_a_run_is_open(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    engine = as_operator(world, database)
    start(engine, settings)
    change(world, "ALTER TABLE ai_suites ADD CONSTRAINT c CHECK (name = 'x')")
    assert preflight.require(engine, settings).is_real
    engine.dispose()


@pytest.mark.long
def test_locks_of_the_application_end_a_trial_and_it_is_unknown(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    engine = as_operator(world, database)
    upgrade.upgrade(engine, settings)
    with world.begin() as application:
        application.exec_driver_sql("SELECT FROM users FOR UPDATE")
        found = looked(engine, settings)["trial"]
        assert (found.verdict, found.found.split(":")[0]) == ("unknown", "could not be made")
        with pytest.raises(Transient):
            trial.run(engine, settings)
        # A run has more patience, and is not refused for it.
        assert not preflight.require(engine, settings).is_real
    engine.dispose()


def test_a_missing_table_is_said_once_and_its_hint_names_candidates(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN, "ALTER TABLE users RENAME TO dashboard_users")
    engine = as_operator(world, database)
    found = looked(engine, settings)
    failed = [check for check in found.values() if check.verdict == "failed"]
    assert [check.name for check in failed] == ["legacy tables"]
    assert "public.dashboard_users" in failed[0].hint
    assert found["trial"].blocked_by == "legacy tables"
    shown = displayed(list(found.values()))
    assert shown.count("does not exist") == 1
    assert "Not looked at, see legacy tables: privileges, target tables," in shown
    assert shown.splitlines()[-1] == "Not passed; failed: legacy tables."
    engine.dispose()


def test_a_table_that_a_mapping_reaches_must_be_readable_as_a_whole(
    world: Engine, database: str, settings: Settings, tmp_path: Path
) -> None:
    build(world, PLAIN, ";".join(OTHER_COLUMNS))
    change(world, "ALTER TABLE plans OWNER TO somebody", "ALTER TABLE roles OWNER TO somebody")
    engine, settings = as_operator(world, database), mapped(settings, tmp_path, MAPPING)
    found = looked(engine, settings)
    for column in ("(id, name) ON public.roles", "(id, gpt) ON public.plans"):
        assert f"SELECT {column}" in found["privileges"].found
        assert f"GRANT SELECT {column} TO operator" in found["privileges"].hint
    assert [c.name for c in found.values() if c.verdict == "failed"] == ["privileges"]
    assert found["subscription statuses"].blocked_by == "privileges"
    change(
        world,
        "GRANT SELECT (id, name) ON roles TO operator; GRANT SELECT ON plans TO operator",
        "ALTER TABLE roles ENABLE ROW LEVEL SECURITY",
    )
    found = looked(engine, settings)
    assert found["privileges"].found == "BYPASSRLS (row-level security hides rows of public.roles)"
    change(world, "ALTER TABLE roles DISABLE ROW LEVEL SECURITY")
    assert said(looked(engine, settings), "failed") == ""
    engine.dispose()


def test_all_obstacles_are_listed_and_a_refusal_counts_them(
    world: Engine, database: str, settings: Settings
) -> None:
    build(
        world,
        PLAIN,
        "ALTER TABLE gpt_subscriptions DROP gpt_id; CREATE TABLE old () INHERITS (users);"
        " ALTER TABLE projects ALTER active_gpt_id TYPE varchar(8) USING 'x'",
    )
    engine = as_operator(world, database)
    found = looked(engine, settings)["legacy tables"].found
    for word in ("no column gpt_id", "has child tables", "found character varying(8)"):
        assert word in found
    with pytest.raises(Incompatible, match="no column gpt_id; and 2 more"):
        preflight.require(engine, settings)
    engine.dispose()


@pytest.mark.parametrize("variant", short(VARIANTS, PLAIN, INTEGER, USERS_ONLY), ids=str)
def test_a_plan_is_made_for_every_kind_of_key(
    variant: Variant, world: Engine, database: str, settings: Settings
) -> None:
    build(world, variant)
    engine = as_operator(world, database)
    assert plan.make(engine, named(variant, settings), None, 1).sample > 0
    engine.dispose()


def test_a_plan_is_refused_by_name(world: Engine, database: str, settings: Settings) -> None:
    build(world, PLAIN, "CREATE RULE frozen AS ON UPDATE TO users DO INSTEAD NOTHING")
    engine = as_operator(world, database)
    with pytest.raises(Incompatible, match="rule frozen"):
        plan.make(engine, settings, None, 1)
    engine.dispose()


def grant(database: str, *options: str) -> str:
    """Run deploy/roles.sql; returns what it says."""
    roles = Path(__file__).parents[2] / "deploy" / "roles.sql"
    psql = programs.postgres_bin_dir() / "psql"
    ended = subprocess.run(
        [psql, "-v", "owner=operator", *options, "-f", roles, database],
        check=True,
        capture_output=True,
        text=True,
    )
    return ended.stderr


def test_the_workers_role_is_tried_as_it_is(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    operator = as_operator(world, database)
    upgrade.upgrade(operator, settings)
    operator.dispose()
    assert "WARNING" not in grant(database)
    engine = databases.create(database.replace("postgres@", "migration_worker@"))
    found = looked(engine, settings)
    assert found["privileges"].verdict == "warning"
    assert found["trial"].verdict == "ok", found["trial"]
    change(world, "REVOKE INSERT ON ai_tools FROM migration_worker")
    found = looked(engine, settings)
    assert "INSERT on public.ai_tools" in found["privileges"].found
    assert found["privileges"].verdict == "failed"
    engine.dispose()
    change(world, "ALTER TABLE ai_tools OWNER TO somebody")
    said = grant(database, "-v", "reads=users.full_name, users.api_key")
    assert "ai_tools belongs to somebody" in said
    assert "ALTER TABLE ai_tools OWNER TO operator" in said
    may = "SELECT has_column_privilege('migration_worker', 'users', '{}', 'SELECT')"
    assert [scalar(world, may.format(name)) for name in ("full_name", "created_at")] == [
        True,
        False,
    ]


def test_a_trial_that_needs_copies_names_the_privilege_that_it_needs(
    world: Engine, database: str, settings: Settings
) -> None:
    build(world, PLAIN)
    name = make_url(database).database
    change(
        world,
        f'REVOKE ALL ON DATABASE "{name}" FROM operator',
        "CREATE SCHEMA migration AUTHORIZATION operator",
    )
    engine = as_operator(world, database)
    found = looked(engine, settings)["trial"]
    assert (found.verdict, found.blocked_by) == ("unknown", "")
    assert (
        found.hint
        == f"GRANT CREATE ON DATABASE {name} TO operator. Or first: producer schema upgrade"
    )
    upgrade.upgrade(engine, settings)
    assert looked(engine, settings)["trial"].verdict == "ok"
    engine.dispose()


def displayed(found: Sequence[Check], width: int = 200) -> str:
    out = io.StringIO()
    terminal.checks(Console(file=out, width=width), found)
    return out.getvalue()


def test_names_are_folded_and_never_cut() -> None:
    name = "public.dashboard_gpt_subscriptions_of_the_whole_district.active_gpt_identifier"
    check = Check(name="constraints and triggers", verdict="failed", found=name, hint=name)
    for width in (30, 80):
        shown = displayed([check], width)
        assert "…" not in shown
        letters = "".join(shown.split())
        for letter in "_.":
            # Each line of a column may hold a part of it: nothing of both is missing.
            assert letters.count(letter) >= 2 * name.count(letter)
