"""A grant for a type that no user can have is refused by name, before anything is changed."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from models.errors import Misconfigured
from models.grants import parse_grants
from models.preflight import examine
from models.settings import DEFAULT_GRANTS, Settings
from producer.checks import check as checks
from producer.checks import preflight
from tests.driving import change, scalar

USERS = 20
pytestmark = pytest.mark.usefixtures("bare")
MISTYPED = "student=100,Teacher=500,admins=1000,pupil=1,*=100"


def with_grants(settings: Settings, text: str) -> Settings:
    return settings.model_copy(update={"credit_grants": parse_grants(text)})


def refused_types(engine: Engine, settings: Settings, text: str) -> list[str]:
    with engine.connect() as connection:
        found = examine.examine(connection, with_grants(settings, text)).fatal
    parts = (each.what.partition("no user can have: ") for each in found)
    return [types for _, is_ours, types in parts if is_ours]


def test_a_mistyped_type_refuses_the_run_and_fails_the_check(
    engine: Engine, settings: Settings
) -> None:
    mistyped = with_grants(settings, MISTYPED)
    with pytest.raises(Misconfigured, match="MIGRATION_CREDIT_GRANTS names types") as refused:
        preflight.require(engine, mistyped)
    for words in ("Teacher (did you mean teacher?)", "admins (did you mean admin?)", ", pupil"):
        assert words in refused.value.message
    assert "student, teacher, admin, developer" in refused.value.hint
    assert scalar(engine, "SELECT to_regnamespace('migration') IS NULL")
    row = {each.name: each for each in checks.examine(engine, mistyped)}["target tables"]
    assert row.verdict == "failed" and "Teacher" in row.found and "developer" in row.hint


def test_every_label_of_an_adopted_enum_may_have_a_grant(
    engine: Engine, settings: Settings
) -> None:
    assert refused_types(engine, settings, "developer=1,*=1") == []
    assert refused_types(engine, settings, "parent=1,*=1") == ["parent"]
    labels = "'student', 'teacher', 'admin', 'developer', 'parent'"
    change(engine, f"CREATE TYPE user_type AS ENUM ({labels})")
    assert refused_types(engine, settings, "parent=1,*=1") == []
    change(engine, "ALTER TABLE users ADD user_type user_type")
    assert refused_types(engine, settings, "parent=1,parents=1,*=1") == [
        "parents (did you mean parent?)"
    ]


def test_a_free_text_may_hold_any_type(engine: Engine, settings: Settings) -> None:
    change(engine, "ALTER TABLE users ADD user_type varchar(20)")
    assert refused_types(engine, settings, MISTYPED) == []


def test_the_grants_that_nobody_has_set_suit_an_adopted_enum_without_some_of_our_types(
    engine: Engine, settings: Settings
) -> None:
    change(
        engine,
        "CREATE TYPE user_type AS ENUM ('student', 'teacher')",
        "ALTER TABLE users ADD user_type user_type",
    )
    assert refused_types(engine, settings, DEFAULT_GRANTS) == []
