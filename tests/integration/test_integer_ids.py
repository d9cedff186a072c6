"""Integer ids of the target follow from the legacy keys; what does not go with them is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from models.errors import MigrationError
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer import repair
from producer.checks import plan
from producer.runs import control
from producer.schema import upgrade
from tests import oracle, shapes
from tests.driving import change, go_on, scalar, start, whole_run

USERS = 100
pytestmark = pytest.mark.usefixtures("bare")
GRANTS = parse_grants(DEFAULT_GRANTS)
NAMES = shapes.TODAY.names
WRITTEN = ("ai_suites", "ai_tools", "tool_assignments", "dashboard_tool_usage_logs", "credit_logs")


def hashes(engine: Engine) -> list[str]:
    tables = (*WRITTEN, "dashboard_users", "dashboard_projects", "organizations")
    query = "SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"
    return [scalar(engine, query.format(name)) for name in tables]


@pytest.mark.long
def test_again_changes_nothing_and_no_sequence_moved(
    today: Engine, mapped: Settings, sampled: Engine, finished: RunReport
) -> None:
    sequences = "SELECT string_agg(sequencename || last_value, ',' ORDER BY 1) FROM pg_sequences"
    before = scalar(sampled, sequences + " WHERE schemaname = 'public'")
    written = hashes(today)
    again = whole_run(today, mapped)
    assert (again.verification.differences, hashes(today)) == (0, written)
    assert scalar(today, sequences + " WHERE schemaname = 'public'") == before
    assert scalar(today, "SELECT min(id) FROM ai_tools WHERE tool_type = 'gpt'") > 10**9


def test_what_the_application_changes_meanwhile_is_taken_up(
    today: Engine, mapped: Settings
) -> None:
    with today.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    run_id = start(today, mapped)

    def write(stage: str) -> None:
        if stage == "switch":
            change(
                today,
                "UPDATE dashboard_gpt_subscriptions SET gpt_definition_id = 1 WHERE id < 40",
                "UPDATE dashboard_gpt_subscriptions SET user_id = 5 WHERE id BETWEEN 41 AND 45",
                "DELETE FROM dashboard_gpt_subscriptions WHERE id BETWEEN 60 AND 70",
                "UPDATE dashboard_users SET role = 'ADMIN' WHERE id < 9",
            )

    run = go_on(today, mapped, run_id, before=write)
    assert (run.verification.differences, run.reconciliation.discrepancies) == (0, 0)
    with today.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []


def test_a_lost_tool_is_found_and_repaired(
    today: Engine, mapped: Settings, finished: RunReport
) -> None:
    run_id = finished.run_id
    written = hashes(today)[:1]
    for column in ("name <> 'x'", "configuration::jsonb ? 'project_id'"):
        lost = f"(SELECT min(id) FROM ai_tools WHERE tool_type = 'gpt' AND {column})"
        change(
            today,
            f"DELETE FROM dashboard_tool_usage_logs WHERE tool_id = {lost}",
            f"DELETE FROM tool_assignments WHERE tool_id = {lost}",
            f"DELETE FROM ai_tools WHERE id = {lost}",
        )
    control.check_again(today, mapped, run_id, "verification")
    assert go_on(today, mapped, run_id).verification.differences > 0
    assert repair.run(today, mapped, "tools", key=None, dry_run=False, force=False)
    control.check_again(today, mapped, run_id, "verification")
    assert go_on(today, mapped, run_id).verification.differences == 0
    assert hashes(today)[:1] == written


def test_a_damaged_name_of_a_tool_is_one_difference(
    today: Engine, mapped: Settings, finished: RunReport
) -> None:
    run_id = finished.run_id
    one = "(SELECT min(id) FROM ai_tools WHERE configuration::jsonb ? 'project_id')"
    change(today, f"UPDATE ai_tools SET name = 'wrong' WHERE id = {one}")
    control.check_again(today, mapped, run_id, "verification")
    run = go_on(today, mapped, run_id)
    (said,) = run.differences
    assert "ai_tools" in said and said.endswith("name")


def test_a_plan_rehearses_with_the_ids_that_are_there(today: Engine, mapped: Settings) -> None:
    upgrade.upgrade(today, mapped)
    assert plan.make(today, mapped, None, 1)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "SELECT setval('ai_tools_id_seq', 2000000000)",
            "ai_tools_id_seq of public.ai_tools.id is",
        ),
        (
            "INSERT INTO ai_suites (id, user_id, name) VALUES (1000000007, 1, 'x')",
            "public.ai_suites has a row with the id 1000000007",
        ),
        (
            "UPDATE dashboard_gpt_subscriptions SET id = 600000000 WHERE id = 7",
            "holds 600000000, too large for an id of public.ai_tools",
        ),
        ("UPDATE dashboard_projects SET id = -7 WHERE id = 7", "holds negative keys .-7."),
        (
            "ALTER TABLE dashboard_projects ALTER id TYPE text",
            "public.ai_tools.id is integer, but public.dashboard_projects.id is text",
        ),
        (
            "ALTER TABLE dashboard_tool_usage_logs ALTER id DROP DEFAULT, ALTER id TYPE text",
            "public.dashboard_tool_usage_logs.id: expected an integer or a text as",
        ),
        (
            "ALTER TABLE ai_tools ALTER id DROP DEFAULT;"
            " ALTER TABLE ai_tools ALTER id ADD GENERATED ALWAYS AS IDENTITY",
            "public.ai_tools.id: expected a plain column, found one that takes no value",
        ),
        (
            "ALTER TABLE ai_tools ALTER id DROP DEFAULT;"
            " ALTER TABLE ai_tools"
            " ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 2000000000);"
            " INSERT INTO ai_tools (name, tool_type) VALUES ('own', 'x')",
            "The sequence public.ai_tools_id_seq1 of public.ai_tools.id is at 2000000000",
        ),
        (
            "ALTER TABLE ai_tools ALTER id TYPE bigint",
            "public.tool_assignments.tool_id: expected bigint",
        ),
    ],
)
def test_what_integer_ids_do_not_go_with_is_refused_by_name(
    today: Engine, mapped: Settings, statement: str, words: str
) -> None:
    change(today, statement)
    with pytest.raises(MigrationError, match=words) as refused:
        upgrade.upgrade(today, mapped)
    assert "Nothing was changed" in refused.value.hint
    with today.connect() as connection:
        assert connection.scalar(text("SELECT to_regnamespace('migration') IS NULL"))


def test_bigint_ids_begin_where_no_sequence_comes(
    today: Engine, mapped: Settings, tmp_path: Path
) -> None:
    change(
        today,
        "ALTER TABLE ai_tools ALTER id TYPE bigint",
        *(
            f"ALTER TABLE {table} ALTER tool_id TYPE bigint"
            for table in (
                "tool_assignments", "dashboard_tool_usage_logs", "dashboard_marketplace_listings"
            )
        ),
    )  # fmt: skip
    with today.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    run = whole_run(today, mapped)
    assert run.verification.differences == 0
    with today.connect() as connection:
        assert oracle.compare(connection, before, oracle.expected(before, GRANTS)) == []
    assert scalar(today, "SELECT min(id) FROM ai_tools WHERE tool_type = 'gpt'") > 2**62


def test_ids_may_be_identity_columns(today: Engine, mapped: Settings) -> None:
    change(
        today,
        "ALTER TABLE ai_tools ALTER id DROP DEFAULT",
        "ALTER TABLE ai_tools ALTER id ADD GENERATED BY DEFAULT AS IDENTITY (START 100)",
    )
    with today.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    assert whole_run(today, mapped).verification.differences == 0
    with today.connect() as connection:
        assert oracle.compare(connection, before, oracle.expected(before, GRANTS)) == []
    # The identity's sequence is where it was.
    made = "INSERT INTO ai_tools (name, tool_type) VALUES ('own', 'x') RETURNING id"
    with today.begin() as connection:
        assert connection.scalar(text(made)) == 100
