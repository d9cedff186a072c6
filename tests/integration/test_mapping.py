"""Columns of other names are read where the mapping says, in every statement of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from models.errors import Misconfigured, OtherTables
from models.ledger import relations
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.schema import upgrade
from tests import oracle
from tests.driving import change, scalar, start, whole_run

USERS = 100
pytestmark = pytest.mark.usefixtures("bare")
GRANTS = parse_grants(DEFAULT_GRANTS)
MAPPING = """
[columns.users]
email = "mail"
role = "role_id -> roles.name"

[columns.subscriptions]
gpt_id = "plan_id -> plans.gpt"
preferences = "configuration"
status = "state"
"""
# As the plain sample, with two columns that lie in tables of their own.
OTHER_COLUMNS = (
    "CREATE TABLE roles (id serial PRIMARY KEY, name text)",
    "INSERT INTO roles (name) SELECT DISTINCT role FROM users",
    "ALTER TABLE users RENAME email TO mail",
    "ALTER TABLE users ADD role_id integer",
    "UPDATE users u SET role_id = r.id FROM roles r WHERE r.name = u.role",
    "CREATE TABLE plans (id serial PRIMARY KEY, gpt text)",
    "INSERT INTO plans (gpt) SELECT DISTINCT gpt_id FROM gpt_subscriptions",
    "ALTER TABLE gpt_subscriptions RENAME preferences TO configuration",
    "ALTER TABLE gpt_subscriptions RENAME status TO state",
    "ALTER TABLE gpt_subscriptions ADD plan_id integer",
    "UPDATE gpt_subscriptions s SET plan_id = p.id FROM plans p WHERE p.gpt = s.gpt_id",
)


def mapped(settings: Settings, folder: Path, text: str) -> Settings:
    path = folder / "here.toml"
    path.write_text(text)
    return settings.model_copy(update={"mapping": str(path)})


def test_a_run_reads_what_the_mapping_names(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    with engine.connect() as connection:
        expectation = oracle.expected(oracle.snapshot(connection, oracle.Names()), GRANTS)
    change(
        engine,
        *OTHER_COLUMNS,
        "ALTER TABLE users DROP role",
        "ALTER TABLE gpt_subscriptions DROP gpt_id",
    )
    with engine.connect() as connection:
        before = oracle.snapshot(connection, oracle.Names())
    run = whole_run(engine, mapped(settings, tmp_path, MAPPING))
    assert (run.verification.differences, run.reconciliation.discrepancies) == (0, 0)
    with engine.connect() as connection:
        assert oracle.compare(connection, before, expectation) == []


def test_a_projects_tool_keeps_its_name_when_the_subscription_that_named_it_is_gone(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    good = " AND btrim(gpt_id) <> '' AND EXISTS (SELECT FROM users u WHERE u.id = s.user_id"
    good += " AND btrim(u.email) <> '') AND EXISTS (SELECT FROM projects p"
    good += " WHERE p.user_id = s.user_id AND btrim(p.active_gpt_id) <> '')"
    last = f"SELECT max(id) FROM gpt_subscriptions s WHERE true{good}"
    named = dict.fromkeys(("deleted", "moved", "renamed"), "")
    for fate in named:
        named[fate] = scalar(engine, last)
        last = "SELECT max(id) FROM gpt_subscriptions s WHERE user_id < (SELECT user_id"
        last += f" FROM gpt_subscriptions WHERE id = '{named[fate]}'){good}"
    change(
        engine,
        *(
            f"UPDATE projects SET name = '{fate}', active_gpt_id = '{key}' WHERE id = (SELECT"
            " min(p.id) FROM projects p JOIN gpt_subscriptions s ON s.user_id = p.user_id"
            f" WHERE s.id = '{key}')"
            for fate, key in named.items()
        ),
    )
    gpts = {
        fate: scalar(engine, f"SELECT gpt_id FROM gpt_subscriptions WHERE id = '{key}'")
        for fate, key in named.items()
    }
    done: list[str] = []

    def write(stage: str) -> None:
        if stage == "verification" and not done:
            done.append(stage)
            one = f"WHERE id = '{named['moved']}'"
            change(
                engine,
                f"DELETE FROM gpt_subscriptions WHERE id = '{named['deleted']}'",
                "UPDATE gpt_subscriptions SET user_id = (SELECT max(id) FROM users"
                f" WHERE id <> user_id) {one}",
                f"UPDATE gpt_subscriptions SET gpt_id = 'new' WHERE id = '{named['renamed']}'",
            )

    run = whole_run(engine, mapped(settings, tmp_path, "active_gpt = 'subscription'"), before=write)
    assert (run.exit_status, run.differences) == (3, {})
    with engine.connect() as connection:
        tools = connection.exec_driver_sql(
            "SELECT p.name, t.name FROM projects p JOIN ai_tools t ON t.id = p.active_gpt_id"
            " WHERE p.name IN ('deleted', 'moved', 'renamed')"
        )
        assert {tuple(row) for row in tools} == {*(gpts | {"renamed": "new"}).items()}


def test_a_process_with_another_mapping_does_not_touch_the_run(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    change(engine, OTHER_COLUMNS[7])
    opened = mapped(settings, tmp_path, '[columns.subscriptions]\npreferences = "configuration"\n')
    run_id = start(engine, opened)
    with engine.connect() as connection:
        for other in (settings, opened):
            found = relations.read_run(connection, other, run_id)
            assert found is not None
            if other is opened:
                relations.require(found[0], other, found[1])
            else:
                with pytest.raises(OtherTables, match="The mapping here says nothing, but that"):
                    relations.require(found[0], other, found[1])


def test_a_process_whose_mapping_cannot_be_read_leaves_the_run_to_others(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    run_id = start(engine, settings)
    broken = mapped(settings, tmp_path, "[tables]\nuser = 'u'\n")
    with engine.connect() as connection, pytest.raises(OtherTables, match="did you mean users"):
        relations.read_run(connection, broken, run_id)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        '[columns.subscriptions]\npreferences = "configurations"': "did you mean configuration?",
        '[columns.users]\nrole = "role_id -> role.name"': "the table role does not exist",
        '[columns.users]\nrole = "role_id -> roles.label"': "roles has no column label",
        '[columns.users]\nrole = "role -> roles.name"': "cannot point at public.roles",
    }.items(),
)
def test_a_column_that_is_not_there_is_refused_by_its_line(
    engine: Engine, settings: Settings, tmp_path: Path, text: str, words: str
) -> None:
    change(engine, *OTHER_COLUMNS[:2], *OTHER_COLUMNS[3:5], OTHER_COLUMNS[7])
    with pytest.raises(Misconfigured, match=words) as refused:
        upgrade.upgrade(engine, mapped(settings, tmp_path, text))
    assert refused.value.message.startswith("here.toml, line 2, columns.")
    assert "Nothing was changed" in refused.value.hint
