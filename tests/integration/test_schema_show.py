"""`schema show` names every obstacle at once, and writes a first mapping that fixes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.errors import MigrationError
from models.settings import Settings
from producer.schema import show, upgrade
from tests import shapes
from tests.driving import change, whole_run

USERS = 60
pytestmark = pytest.mark.usefixtures("bare")
TABLES = {
    "users_table": shapes.TODAY.names.users,
    "subscriptions_table": shapes.TODAY.names.subscriptions,
    "projects_table": shapes.TODAY.names.projects,
}


def test_every_obstacle_is_listed_with_what_fixes_it(today: Engine, settings: Settings) -> None:
    found = show.describe(today, settings.model_copy(update=TABLES))
    fixes = {each["what"]: each["fix"] for each in found["obstacles"]}
    (gpt,) = [what for what in fixes if what.endswith("has no column gpt_id")]
    assert '[columns.subscriptions] gpt_id = "…"' in fixes[gpt]
    for column in ("organizations.status", "departments.status"):
        (required,) = [what for what in fixes if what.startswith(f"public.{column}: expected")]
        assert fixes[required] == f'In the mapping: [defaults] "{column}" = "ACTIVE"'
    assert found["advice"] == "Set MIGRATION_MAPPING=today: the tables look like it."
    assert found["target"]["ai_tools"]["missing_columns"] == [
        *("version", "pricing_tier", "credits_cost", "is_active", "requires_approval")
    ]


def test_a_refusal_names_the_mapping_that_the_tables_look_like(
    today: Engine, settings: Settings
) -> None:
    for tables in ({}, TABLES):
        with pytest.raises(MigrationError) as refused:
            upgrade.upgrade(today, settings.model_copy(update=tables))
        assert "Set MIGRATION_MAPPING=today: the tables look like it." in refused.value.hint


def test_with_its_mapping_nothing_is_in_the_way(today: Engine, settings: Settings) -> None:
    found = show.describe(today, settings.model_copy(update={"mapping": "today"}))
    assert [each for each in found["obstacles"] if each["is_fatal"]] == []


def test_a_first_mapping_is_enough_for_a_run(
    today: Engine, settings: Settings, tmp_path: Path
) -> None:
    change(
        today,
        "ALTER TABLE dashboard_gpt_subscriptions RENAME gpt_definition_id TO gpt_key",
        "ALTER TABLE dashboard_users RENAME TO school_users",
    )
    text = show.draft(today, settings)
    for line in (
        'users = "public.school_users"',
        'tool_usage_logs = "dashboard_tool_usage_logs"',
        'gpt_id = "gpt_key"',
        'preferences = "configuration"',
        '"organizations.status" = "ACTIVE"',
        '"tool_usage_logs.timestamp" = "now()"',
    ):
        assert line in text
    path = tmp_path / "first.toml"
    path.write_text(text)
    run = whole_run(today, settings.model_copy(update={"mapping": str(path)}))
    assert run.verification.differences == 0


def test_tables_that_a_shipped_mapping_fits_get_that(today: Engine, settings: Settings) -> None:
    assert 'gpt_id = "gpt_definition_id"' in show.draft(today, settings)
