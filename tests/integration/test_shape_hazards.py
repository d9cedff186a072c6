"""What happens to a dashboard of another shape between two runs, or in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models.dashboard.mapping import file
from models.errors import MigrationError
from models.reports.run import RunReport
from models.settings import Settings
from producer.runs import control, rollback
from producer.schema import downgrade
from tests.driving import change, go_on, scalar, start, whole_run

USERS = 60
pytestmark = pytest.mark.usefixtures("bare")
TOOLS = "SELECT count(*) FROM ai_tools"
# A project whose column names a subscription of its owner.
PROJECT = (
    "SELECT p.id, p.user_id, s.id AS subscription, s.gpt_definition_id::text AS gpt"
    " FROM dashboard_projects p JOIN dashboard_gpt_subscriptions s"
    " ON s.id::text = p.active_gpt_id AND s.user_id = p.user_id WHERE s.id > {} ORDER BY 1 LIMIT 1"
)


def row(engine: Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(text(query)).one()


def other_mapping(settings: Settings, folder: Path, content: str) -> Settings:
    path = folder / "here.toml"
    path.write_text(content)
    return settings.model_copy(update={"mapping": str(path)})


def tool_of(engine: Engine, project: int) -> tuple[str, str]:
    found = row(
        engine,
        "SELECT t.name, t.configuration::jsonb ->> 'gpt_id' FROM ai_tools t JOIN dashboard_projects"
        f" p ON p.active_gpt_id = t.id::text WHERE p.id = {project}",
    )
    return tuple(found)


@pytest.mark.long
def test_ids_stay_where_their_columns_become_bigint(
    today: Engine, mapped: Settings, finished: RunReport
) -> None:
    tools = scalar(today, TOOLS)
    pointing = ("tool_assignments", "dashboard_tool_usage_logs", "dashboard_marketplace_listings")
    change(
        today,
        "ALTER TABLE ai_tools ALTER id TYPE bigint",
        *(f"ALTER TABLE {table} ALTER tool_id TYPE bigint" for table in pointing),
    )
    again = whole_run(today, mapped)
    assert (again.verification.differences, scalar(today, TOOLS)) == (0, tools)


GONE = "DELETE FROM dashboard_gpt_subscriptions WHERE id = {}"


def test_the_tool_of_a_project_keeps_its_gpt_when_the_subscription_goes_in_a_run(
    today: Engine, mapped: Settings
) -> None:
    found = row(today, PROJECT.format(0))
    begun: list[str] = []

    def write(stage: str) -> None:
        if stage == "verification" and not begun:
            begun.append(stage)
            change(today, GONE.format(found.subscription))

    run = whole_run(today, mapped, before=write)
    assert run.verification.differences == 0
    assert tool_of(today, found.id) == (found.gpt, found.gpt)


def test_so_it_does_when_the_subscription_goes_between_two_runs(
    today: Engine, mapped: Settings, sampled: Engine, finished: RunReport
) -> None:
    # The run has put a tool in the place of the subscription.
    found = row(sampled, PROJECT.format(0))
    change(today, GONE.format(found.subscription))
    run = whole_run(today, mapped)
    assert run.verification.differences == 0
    assert tool_of(today, found.id) == (found.gpt, found.gpt)


def test_a_subscription_is_chosen_where_a_tool_of_the_owner_has_the_same_number(
    today: Engine, mapped: Settings
) -> None:
    found = row(today, PROJECT.format(30))
    change(
        today,
        f"INSERT INTO ai_suites (id, user_id, name) VALUES (9999, {found.user_id}, 'own')",
        "INSERT INTO ai_tools (id, name, tool_type, suite_id)"
        f" VALUES ({found.subscription}, 'own tool', 'x', 9999)",
    )
    assert whole_run(today, mapped).verification.differences == 0
    assert tool_of(today, found.id) == (found.gpt, found.gpt)


def test_a_row_whose_key_has_no_id_is_quarantined_and_nothing_else(
    today: Engine, mapped: Settings
) -> None:
    begun: list[str] = []

    def write(stage: str) -> None:
        if stage == "users" and not begun:
            begun.append(stage)
            change(
                today,
                "UPDATE dashboard_projects SET id = -7"
                " WHERE id = (SELECT min(id) FROM dashboard_projects WHERE active_gpt_id <> '')",
                "UPDATE dashboard_gpt_subscriptions SET id = -9"
                " WHERE id = (SELECT max(id) FROM dashboard_gpt_subscriptions)",
            )

    run = go_on(today, mapped, start(today, mapped), before=write)
    assert (run.state, run.verification.differences) == ("completed_with_quarantine", 0)
    refused = (
        "SELECT string_agg(entity || legacy_key, ' ' ORDER BY entity) FROM migration.quarantine"
    )
    assert scalar(today, refused + " WHERE reason = 'rejected'") == "project-7 subscription-9"


def test_a_retry_leaves_tools_of_the_application_beyond_the_first_id(
    today: Engine, mapped: Settings, finished: RunReport
) -> None:
    run_id = finished.run_id
    suite = row(today, "SELECT id, user_id FROM ai_suites WHERE id > 1e9 ORDER BY 1 LIMIT 1")
    change(
        today,
        "SELECT setval('ai_tools_id_seq', (SELECT max(id) + 1 FROM ai_tools))",
        "INSERT INTO ai_tools (name, tool_type, suite_id, created_at, updated_at)"
        f" SELECT 'own', 'x', {suite.id}, now(), now() FROM generate_series(1, 4)",
        "INSERT INTO migration.quarantine (entity, legacy_key, run_id, batch_id, reason, message)"
        f" VALUES ('user', '{suite.user_id}', '{run_id}', 1, 'by hand', '')",
    )
    control.retry(today, mapped, run_id)
    run = go_on(today, mapped, str(run_id))
    assert (run.state, run.verification.differences) == ("completed_with_quarantine", 0)
    assert scalar(today, TOOLS + " WHERE name = 'own'") == 4


def test_after_a_run_the_mapping_may_give_other_defaults_and_nothing_else(
    today: Engine, mapped: Settings, finished: RunReport, tmp_path: Path
) -> None:
    change(
        today,
        "ALTER TABLE organizations ADD region text NOT NULL DEFAULT 'x'",
        "ALTER TABLE organizations ALTER region DROP DEFAULT",
    )
    shipped = file.known()["today"]
    more = other_mapping(mapped, tmp_path, shipped + '"organizations.region" = "EU"\n')
    assert whole_run(today, more).verification.differences == 0
    renamed = shipped.replace('"gpt_definition_id"', '"name"')
    with pytest.raises(MigrationError, match="The mapping here says"):
        whole_run(today, other_mapping(mapped, tmp_path, renamed))


def test_a_downgrade_takes_the_mapping_of_the_run(
    today: Engine, mapped: Settings, finished: RunReport, tmp_path: Path
) -> None:
    run_id = str(finished.run_id)
    rollback.start(today, mapped, run_id, force=False)
    assert go_on(today, mapped, run_id).state == "rolled_back"
    lines = [line for line in file.known()["today"].splitlines() if "usage_logs =" not in line]
    other = other_mapping(mapped, tmp_path, "\n".join([*lines, ""]))
    for command in (downgrade.would_lose, downgrade.downgrade):
        with pytest.raises(MigrationError, match="The mapping here says"):
            command(today, other)
    # A column that the application dropped meanwhile has no default to take away.
    change(today, "ALTER TABLE organizations DROP COLUMN status")
    assert ("schema", "", "migration") in downgrade.downgrade(today, mapped)
