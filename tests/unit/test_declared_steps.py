"""What is left out of a declared migration is refused, with a sentence that says what to write."""

from __future__ import annotations

import pytest

from models.engine import current
from models.engine.api import Copy, Counts, Expect, Insert, Migration, Scope, Source, Step
from models.engine.step import Context
from models.errors import Incompatible, MigrationError, Misconfigured

EXPECTED = Expect("awards", "SELECT s.id AS source_key, s.id, upper(s.name) AS title FROM {badges}")
BADGES = Source("badge")


class Whole(Copy):
    source = BADGES
    inserts = (Insert("awards", id="s.id", title="initcap(s.name)"),)
    expects = (EXPECTED,)


class Unexpected(Whole):
    expects = ()


class Kept(Step):
    """A step in full that says nothing of its undo."""

    source = BADGES
    expects = (EXPECTED,)

    def apply(self, context: Context, scope: Scope) -> Counts:
        return {}


class Irreversible(Kept):
    irreversible = "awards are never taken away"


class Repeated(Whole):
    inserts = (Insert("awards", id="s.id", title="upper( s.name )"),)


@pytest.mark.parametrize(
    ("step", "what"),
    [(Unexpected, "does not say what must be there"), (Kept, "how they are undone")],
)
def test_a_step_that_leaves_something_out_is_refused(step: type[Step], what: str) -> None:
    with pytest.raises(Misconfigured, match=what) as refused:
        Migration("badges", [step()]).require_declared()
    assert step.__name__ in refused.value.hint


@pytest.mark.parametrize("step", [Whole, Irreversible])
def test_a_step_that_says_all_is_taken_and_arranged(step: type[Step]) -> None:
    migration = Migration("badges", [step()])
    migration.require_declared()
    assert list(migration.stages) == ["prepare", "badges", "replay", "verification", "finish"]
    assert [source.plural for source in migration.sources] == ["badges"]
    assert migration.queues == ["migration.rows", "migration.verify", "migration.control"]


def test_two_steps_of_one_name_are_refused() -> None:
    with pytest.raises(Misconfigured, match="two steps named badges"):
        Migration("badges", [Whole(), Whole()]).require_declared()


@pytest.mark.parametrize("entity", ["row", "stage", "worker", "badge"])
def test_two_things_of_one_name_in_a_report_are_refused(entity: str) -> None:
    other = Source(entity, table="badges") if entity != "badge" else Source("b", plural="badges")
    with pytest.raises(Misconfigured, match=f"calls something {other.plural}"):
        Migration("others", [Whole()], sources=[other]).require_declared()
    free = Source(entity, plural=f"all_{entity}s", table=f"{entity}s")
    if entity != "badge":
        Migration("twins", [Whole()], sources=[free]).require_declared()


def test_a_rule_that_is_repeated_word_for_word_is_named_and_plain_columns_are_not() -> None:
    assert Repeated().repeated_rules() == ["awards.title"]
    assert Whole().repeated_rules() == []


def test_an_insert_without_its_key_and_an_expectation_without_a_source_are_refused() -> None:
    with pytest.raises(Misconfigured, match="has no column id, its key"):
        Insert("awards", title="s.name")
    with pytest.raises(Incompatible, match="has no column source_key"):
        Expect("awards", "SELECT s.id FROM {badges} s")


def test_a_parent_needs_its_column() -> None:
    with pytest.raises(Misconfigured, match="both parent and parent_column"):
        Source("badge", parent="member")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("nobody.has.this:MIGRATION", "cannot be imported"),
        ("models.engine.api:NOTHING", "cannot be imported"),
        ("models.engine.api:Copy", "not a Migration"),
    ],
)
def test_a_name_that_leads_to_no_migration_is_refused(
    name: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION", name)
    with pytest.raises(MigrationError, match=what) as refused:
        current.migration()
    assert refused.value.hint
