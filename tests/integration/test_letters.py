"""Letters of either case, in columns that take them for equal and in those that do not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from models.errors import Incompatible
from models.postgres import database as databases
from models.postgres.database import transaction
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.checks import check
from producer.schema import upgrade
from tests import oracle, variants
from tests.conftest import fresh_database
from tests.driving import change, go_on, scalar, start, whole_run
from tests.short import short

USERS, BATCH_SIZE = 60, 20
GRANTS = parse_grants(DEFAULT_GRANTS)
ANY_CASE = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
COLUMNS = (
    "users ALTER email",
    "users ALTER role",
    "gpt_subscriptions ALTER gpt_id",
    "gpt_subscriptions ALTER version",
    "gpt_subscriptions ALTER status",
    "projects ALTER active_gpt_id",
)
# Of migrated rows, in the case of their letters alone.
WRITES = (
    "UPDATE users SET email = {0}(email) WHERE id IN (SELECT min(user_id) FROM ai_suites)",
    "UPDATE gpt_subscriptions SET gpt_id = {0}(gpt_id), version = {0}(version) WHERE id IN"
    " (SELECT substr(max(id), 3) FROM ai_tools WHERE id LIKE 't-%')",
    "UPDATE projects SET active_gpt_id = {0}(active_gpt_id) WHERE id IN"
    " (SELECT substr(max(id), 3) FROM ai_tools WHERE id LIKE 'p-%')"
    " AND left(active_gpt_id, 2) <> 'p-'",
)


@pytest.fixture
def icu_engine(icu_postgres: str) -> Iterator[Engine]:
    """The plain sample on a server with ICU and citext."""
    with fresh_database(icu_postgres) as url:
        engine = databases.create(url)
        with engine.begin() as connection:
            variants.PLAIN.build(connection, USERS)
        yield engine
        engine.dispose()


def snapshot(engine: Engine) -> oracle.Snapshot:
    with engine.connect() as connection:
        return oracle.snapshot(connection, oracle.Names())


def wrong_rows(engine: Engine, before: oracle.Snapshot) -> list[str]:
    with engine.connect() as connection:
        return oracle.compare_now(connection, before, GRANTS)


def change_case_on(engine: Engine, settings: Settings) -> None:
    """A run in which rows change in case only, in every stage: its end is right."""
    change(engine, "UPDATE gpt_subscriptions SET version = 'beta' WHERE version IS NOT NULL")
    before = snapshot(engine)
    seen: list[str] = []

    def write(stage: str) -> None:
        if stage not in seen:
            seen.append(stage)
            how = "upper" if len(seen) % 2 else "initcap"
            change(engine, *(each.format(how) for each in WRITES))

    ended = go_on(engine, settings, start(engine, settings), before=write)
    assert {"projects", "switch", "verification", "finish"} <= set(seen)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert wrong_rows(engine, before) == []


@pytest.mark.long
def test_a_change_of_case_is_a_change_where_the_collation_takes_none_for_one(
    icu_engine: Engine, settings: Settings
) -> None:
    change(
        icu_engine, ANY_CASE, *(f"ALTER TABLE {each} TYPE varchar COLLATE ci" for each in COLUMNS)
    )
    change_case_on(icu_engine, settings)


def test_a_change_of_case_is_a_change_in_citext(icu_engine: Engine, settings: Settings) -> None:
    change(icu_engine, "CREATE EXTENSION citext",
           *(f"ALTER TABLE {each} TYPE citext" for each in COLUMNS[:-1]))  # fmt: skip
    change_case_on(icu_engine, settings)


def test_what_differs_in_case_only_is_a_difference(icu_engine: Engine, settings: Settings) -> None:
    change(
        icu_engine, ANY_CASE, *(f"ALTER TABLE {each} TYPE varchar COLLATE ci" for each in COLUMNS)
    )
    planted: list[str] = []

    def plant(stage: str) -> None:
        if stage == "verification" and not planted:
            planted.append(stage)
            change(icu_engine, "UPDATE ai_suites SET name = upper(name)",
                   "UPDATE ai_tools SET name = upper(name) WHERE id LIKE 't-%'")  # fmt: skip

    ended = go_on(icu_engine, settings, start(icu_engine, settings), before=plant)
    assert ended.exit_status == 4
    wrong = {"user wrong_value ai_suites.name", "subscription wrong_value ai_tools.name"}
    assert wrong <= set(ended.differences)


@pytest.mark.parametrize(
    "column",
    ["users.id", "gpt_subscriptions.id", "gpt_subscriptions.user_id", "projects.user_id"],
)
def test_a_key_that_takes_different_letters_for_equal_is_refused_by_name(
    icu_engine: Engine, settings: Settings, column: str
) -> None:
    table, name = column.split(".")
    change(icu_engine, ANY_CASE, f"ALTER TABLE {table} ALTER {name} TYPE varchar COLLATE ci")
    with pytest.raises(Incompatible, match=f"public.{column} has a nondeterministic collation"):
        start(icu_engine, settings)
    assert scalar(icu_engine, "SELECT to_regclass('migration.runs')") is None


def test_so_is_such_a_column_of_an_adopted_table(icu_engine: Engine, settings: Settings) -> None:
    upgrade.upgrade(icu_engine, settings)
    change(icu_engine, ANY_CASE, "ALTER TABLE ai_tools ALTER name TYPE varchar COLLATE ci")
    with pytest.raises(Incompatible, match=r"public\.ai_tools\.name: expected a deterministic"):
        start(icu_engine, settings)


@pytest.mark.parametrize("locale", short(["tr-TR", "und", "sv-SE"], "tr-TR"))
def test_a_run_ends_right_in_a_database_of_any_locale(
    icu_postgres: str, settings: Settings, locale: str
) -> None:
    options = f"LOCALE_PROVIDER icu ICU_LOCALE '{locale}' LOCALE 'C' ENCODING 'UTF8'"
    with fresh_database(icu_postgres, template="template0", options=options) as url:
        engine = databases.create(url)
        with engine.begin() as connection:
            variants.PLAIN.build(connection, USERS)
        # A Turkish small I is another letter.
        change(engine, "UPDATE users SET role = 'ADMIN' WHERE role = 'admin'")
        change(engine, "UPDATE gpt_subscriptions SET status = 'ACTIVE' WHERE status = 'active'")
        try:
            change_case_on(engine, settings)
        finally:
            engine.dispose()


def test_a_status_is_active_in_any_case_of_its_letters(engine: Engine, settings: Settings) -> None:
    change(
        engine,
        "CREATE TYPE sub_status AS ENUM ('ACTIVE', ' Active', 'INACTIVE', 'PAUSED', 'ARCHIVED')",
        "ALTER TABLE gpt_subscriptions ALTER status DROP DEFAULT,"
        " ALTER status TYPE sub_status USING upper(btrim(status))::sub_status",
        "UPDATE gpt_subscriptions SET status = ' Active' WHERE id IN"
        " (SELECT min(id) FROM gpt_subscriptions WHERE status = 'ACTIVE')",
        "UPDATE gpt_subscriptions SET status = 'ARCHIVED' WHERE id IN"
        " (SELECT max(id) FROM gpt_subscriptions)",
    )
    found = {row.name: row for row in check.examine(engine, settings)}["subscription statuses"]
    assert (found.verdict, found.found) == (
        "warning",
        "1 rows of public.gpt_subscriptions have a status that is none of active, inactive, paused:"
        " ARCHIVED",
    )
    change_case_on(engine, settings)
    assert scalar(engine, "SELECT count(*) FROM ai_tools WHERE id LIKE 't-%' AND is_active")


def test_the_check_names_no_value_of_a_text_column(engine: Engine, settings: Settings) -> None:
    def found() -> tuple[str, str]:
        row = {row.name: row for row in check.examine(engine, settings)}["subscription statuses"]
        return row.verdict, row.found

    assert found() == ("ok", "none but active, inactive, paused")
    change(engine, "ALTER TABLE gpt_subscriptions ALTER status DROP NOT NULL",
           "UPDATE gpt_subscriptions SET status = E' Paused\\u00a0'",
           "UPDATE gpt_subscriptions SET status = 'secret' WHERE id IN"
           " (SELECT max(id) FROM gpt_subscriptions)",
           "UPDATE gpt_subscriptions SET status = NULL WHERE id IN"
           " (SELECT min(id) FROM gpt_subscriptions)")  # fmt: skip
    verdict, said = found()
    assert verdict == "warning" and said.startswith("1 rows of") and "secret" not in said


def test_only_a_tool_of_its_owner_is_what_a_project_points_at(
    engine: Engine, settings: Settings
) -> None:
    upgrade.upgrade(engine, settings)
    own, other = "(SELECT min(id) FROM users)", "(SELECT max(id) FROM users)"
    change(
        engine,
        f"UPDATE users SET email = id || '@own.example' WHERE id IN ({own}, {other})",
        f"INSERT INTO ai_suites (id, user_id, name) VALUES ('1', {own}, 'own')",
        f"INSERT INTO ai_suites (id, user_id, name) VALUES ('2', {other}, 'other')",
        "INSERT INTO ai_tools (id, name, tool_type, pricing_tier, suite_id)"
        " SELECT t.id, t.id, 'gpt', 'free', t.suite FROM"
        " (VALUES ('17', '1'), ('18', '2'), ('19', '2'), ('20', NULL)) AS t(id, suite)",
        f"INSERT INTO tool_assignments (tool_id, user_id) VALUES ('19', {own})",
        *(
            f"INSERT INTO projects (id, user_id, name, status, active_gpt_id)"
            f" VALUES ('at {tool}', {own}, '', 'active', '{tool}')"
            for tool in ("17", "18", "19", "20")
        ),
    )
    before = snapshot(engine)
    for _ in range(2):
        ended = whole_run(engine, settings)
        assert (ended.exit_status, ended.differences) == (3, {}), ended.error
        assert wrong_rows(engine, before) == []
        at = {
            tool: scalar(engine, f"SELECT active_gpt_id FROM projects WHERE id = 'at {tool}'")
            for tool in ("17", "18", "19", "20")
        }
        assert at == {"17": "17", "18": "p-at 18", "19": "19", "20": "p-at 20"}
    with transaction(engine) as connection:
        assert connection.exec_driver_sql("SELECT name FROM ai_tools WHERE id = 'p-at 18'").scalar()
