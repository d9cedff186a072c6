"""What adopted tables lack is added, recorded, and taken away again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.errors import MigrationError
from models.postgres import database as databases
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.runs import rollback
from producer.schema import downgrade, upgrade
from tests import oracle, variants
from tests.driving import change, go_on, scalar, whole_run

USERS = 100
pytestmark = pytest.mark.usefixtures("bare")
GRANTS = parse_grants(DEFAULT_GRANTS)
NAMES = oracle.Names(targets={"tool_usage_logs": "usage"})
MAPPING = """
[tables]
tool_usage_logs = "usage"

[defaults]
"organizations.status" = "100 % ACTIVE"
"tool_usage_logs.timestamp" = "now()"
"ai_tools.weight" = 7
"""
LACKING = (
    "ALTER TABLE tool_usage_logs RENAME TO usage",
    "CREATE TYPE base_status AS ENUM ('DRAFT', '100 % ACTIVE')",
    "ALTER TABLE organizations ADD status base_status NOT NULL DEFAULT 'DRAFT', DROP settings",
    "ALTER TABLE organizations ALTER status DROP DEFAULT",
    'ALTER TABLE usage ADD "timestamp" timestamp NOT NULL DEFAULT now(), DROP credits_used',
    'ALTER TABLE usage ALTER "timestamp" DROP DEFAULT',
    "ALTER TABLE ai_tools DROP version, DROP pricing_tier, DROP credits_cost, DROP is_active,"
    " DROP requires_approval, ADD weight integer NOT NULL DEFAULT 1",
    "ALTER TABLE ai_tools ALTER weight DROP DEFAULT",
    "ALTER TABLE tool_assignments DROP permissions",
)
COLUMNS = """
SELECT string_agg(concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default),
  ',' ORDER BY table_name, column_name) FROM information_schema.columns
WHERE table_schema = 'public'
"""


@pytest.fixture
def adopted(database: str) -> Iterator[Engine]:
    """Tables that the application's own revision made, less some columns."""
    engine = databases.create(database)
    with engine.begin() as connection:
        variants.ADOPTED.build(connection, USERS)
    change(engine, *LACKING)
    yield engine
    engine.dispose()


def mapped(settings: Settings, folder: Path, text: str = MAPPING) -> Settings:
    path = folder / "here.toml"
    path.write_text(text)
    return settings.model_copy(update={"mapping": str(path)})


def test_a_run_over_what_was_added_is_right_and_a_downgrade_takes_it_away(
    adopted: Engine, settings: Settings, tmp_path: Path
) -> None:
    settings = mapped(settings, tmp_path)
    columns = scalar(adopted, COLUMNS)
    with adopted.connect() as connection:
        before = oracle.snapshot(connection, NAMES)
    run = whole_run(adopted, settings)
    assert (run.verification.differences, run.reconciliation.discrepancies) == (0, 0)
    with adopted.connect() as connection:
        assert oracle.compare(connection, before, oracle.expected(before, GRANTS)) == []
    assert scalar(adopted, "SELECT count(*) FROM ai_tools WHERE pricing_tier IS NULL") == 0
    assert upgrade.upgrade(adopted, settings) == []
    go_on(adopted, settings, rollback.start(adopted, settings, None, force=False))
    downgrade.downgrade(adopted, settings)
    assert scalar(adopted, COLUMNS) == columns
    with adopted.connect() as connection:
        assert oracle.snapshot(connection, NAMES) == before


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'logs = "usage"',
            'logs = "usages"',
            "line 3, tables.tool_usage_logs: the table public.us",
        ),
        ('"100 % ACTIVE"', '"ACTIVE"', "line 6, defaults.organizations.status: .* not take 'ACT"),
        ('"ai_tools.weight" = 7', '"ai_tools.weight" = "x"', "line 8, .* is integer and does not"),
        ("organizations.status", "organizations.state", "organizations has no column state"),
        ('"ai_tools.weight" = 7', "", "public.ai_tools.weight: expected null allowed"),
    ],
)
def test_a_name_or_a_constant_that_does_not_fit_is_refused(
    adopted: Engine, settings: Settings, tmp_path: Path, old: str, new: str, words: str
) -> None:
    columns = scalar(adopted, COLUMNS)
    assert old in MAPPING
    with pytest.raises(MigrationError, match=words) as refused:
        upgrade.upgrade(adopted, mapped(settings, tmp_path, MAPPING.replace(old, new)))
    assert "Nothing was changed" in refused.value.hint
    assert scalar(adopted, COLUMNS) == columns


def test_a_key_is_never_added(adopted: Engine, settings: Settings, tmp_path: Path) -> None:
    change(adopted, "ALTER TABLE ai_tools DROP suite_id")
    with pytest.raises(MigrationError, match=r"ai_tools.suite_id: .* no such column"):
        upgrade.upgrade(adopted, mapped(settings, tmp_path))
