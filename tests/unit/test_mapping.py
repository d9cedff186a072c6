"""A mapping file says every mistake at once, with its line, its key and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.dashboard.mapping import file
from models.errors import Misconfigured

MISTAKES = {
    "tables = 3": ("line 1, tables", "must be a table of its own: [tables]"),
    "[table]\nusers = 'u'": ("line 1, table", "did you mean tables?"),
    "[tables]\nuser = 'u'": ("line 2, tables.user", "did you mean users?"),
    "[tables]\nusers = 3": ("line 2, tables.users", "a text in quotes"),
    "[tables]\nusers = ''": ("line 2, tables.users", "the name of a table, or schema.table"),
    "[tables]\nusers = 'a.b.c'": ("line 2, tables.users", "the name of a table, or schema.table"),
    "[tables]\nusers = '\"u\"'": ("line 2, tables.users", "the name of a table, or schema.table"),
    "[tables]\nai_tools = 'other.tools'": ("line 2, tables.ai_tools", "without a schema"),
    "[tables]\nai_tool = 'tools'": ("line 2, tables.ai_tool", "did you mean ai_tools?"),
    "[columns]\ngpt_id = 'name'": ("line 2, columns.gpt_id", "one of users, subscriptions"),
    "[columns.subscription]\ngpt_id = 'x'": ("columns.subscription", "did you mean subscriptions?"),
    "[columns.subscriptions]\ngpt = 'x'": ("columns.subscriptions.gpt", "did you mean gpt_id?"),
    "[columns.subscriptions]\ngpt_id = 7": ("columns.subscriptions.gpt_id", "a text in quotes"),
    "[columns.subscriptions]\ngpt_id = 'lower(name)::text'": ("gpt_id", "SQL is not taken"),
    "[columns.subscriptions]\ngpt_id = 'a -> b'": ("gpt_id", '"column -> table.column"'),
    "[columns.subscriptions]\ngpt_id = '-> b.c'": ("gpt_id", '"column -> table.column"'),
    "[columns.subscriptions]\ngpt_id = 'a -> b.c -> d.e'": ("gpt_id", '"column -> table.column"'),
    "[columns.projects]\nactive_gpt_id = 'gpt'": ("columns.projects", "the names of the rules"),
    "[columns]\nusers = 'x'": ("line 2, columns.users", "a table of its own: [columns.users]"),
    "[defaults]\n'organization.status' = 'A'": ("line 2, defaults", "did you mean organizations?"),
    "[defaults]\nstatus = 'ACTIVE'": ("line 2, defaults.status", '"table.column" in quotes'),
    "[defaults]\norganizations.status = 'ACTIVE'": ("line 2", '"table.column" in quotes'),
    "[defaults]\n'departments.status' = [1]": ("line 2, defaults", "a text, a number, true, false"),
    "[ids]\nfirst = '10'": ("line 2, ids.first", "a whole number without quotes"),
    "[ids]\nfirst = 0": ("line 2, ids.first", "from 1 to 4611686018427387904"),
    "[ids]\nstart = 5": ("line 2, ids.start", "one of first"),
    "active_gpt = 'subscriptions'": ("line 1, active_gpt", "must be 'gpt' or 'subscription'"),
    "[ids]\nactive_gpt = 'gpt'": ("line 2, ids.active_gpt", "before the first [table]"),
    "[tables\nusers = 'u'": ("is no TOML", "line 1"),
    "[tables]\nusers = u": ("is no TOML", "line 2"),
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named_with_its_line_and_what_would_be_right(
    text: str, tmp_path: Path
) -> None:
    path = tmp_path / "here.toml"
    path.write_text(text)
    with pytest.raises(Misconfigured) as refused:
        file.load(str(path))
    assert refused.value.message.startswith("MIGRATION_MAPPING: here.toml")
    for words in MISTAKES[text]:
        assert words in refused.value.message


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    path.write_text("active_gpt = 'x'\n[tables]\nuser = 'u'\n[ids]\nfirst = 0\n")
    with pytest.raises(Misconfigured) as refused:
        file.load(str(path))
    assert len(refused.value.message.splitlines()) == 3


def test_a_file_that_is_not_there_is_refused_with_the_names_of_those_that_are_shipped() -> None:
    with pytest.raises(Misconfigured, match="cannot be read") as refused:
        file.load("nowhere.toml")
    assert "today" in refused.value.hint


@pytest.mark.parametrize("name", file.known())
def test_what_is_shipped_can_be_named(name: str) -> None:
    found = file.load(name)
    assert found.kept and found.lines


def test_without_a_mapping_nothing_differs() -> None:
    assert not file.load("").kept
