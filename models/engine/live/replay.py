"""Replay: what the application changed while the run was on, brought in line once more, by key.

The same statements as for a page do it, over a list of keys. A change is deleted in the transaction
that replays it, before its row is read, so whatever is written after that read is captured again.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from models.engine.checks import judgement
from models.engine.source import Source, Sources
from models.engine.step import Context, Counts, Scope, Step, add, only_written
from models.ledger import selection

KEYS_A_BATCH = 200
KEYS_A_ROUND = 50_000
# After so many rounds the rest waits for the end of the run: the application writes all the time.
ROUNDS = 4

_FORGET = """
DELETE FROM migration.changes c
WHERE c.entity = :entity AND c.legacy_key = ANY(CAST(:keys AS text[]))
"""
# Children are judged by their parent, so they are replayed after it.
_NOTE_CHILDREN = """
INSERT INTO migration.changes (entity, legacy_key, owner_key, operation)
SELECT '{entity}', {key}::text, {parent}::text, 'UPDATE' FROM {table} t WHERE {scope}
"""


class Replay(Step):
    """Replays the captured changes of one source, in rounds, until few are left."""

    stage = "switch"
    takes_lists = True
    is_verified = False
    unverified = "the rows of all pages are verified after it, late ones by recheck"
    # The entities whose changes it replays, and the column of a change that names its keys.
    changes: tuple[str, ...] = ()
    keyed_by: str = "legacy_key"

    def key_lists(self, context: Context, round_: int) -> list[list[str]]:
        found = self.pending(context)
        if round_ >= ROUNDS or (round_ > 0 and len(found) < KEYS_A_BATCH):
            return []
        return [found[start : start + KEYS_A_BATCH] for start in range(0, len(found), KEYS_A_BATCH)]

    def pending(self, context: Context) -> list[str]:
        """The keys with changes that are not replayed yet, in order."""
        key = self.keyed_by
        statement = text(
            f"SELECT DISTINCT c.{key} FROM migration.changes c"
            f" WHERE c.entity = ANY(:entities) AND c.{key} IS NOT NULL"
            f" AND {selection.of_change(context)} ORDER BY 1 LIMIT :most"
        )
        parameters = {"entities": list(self.changes), "most": KEYS_A_ROUND}
        return list(context.connection.scalars(statement, context.parameters | parameters))


class ReplayOf(Replay):
    """The replay of a source by the steps that page through it, in their order.

    A source without a step of its own is the parent of another one, whose rows are replayed then.
    """

    def __init__(self, source: Source, steps: Sequence[Step]) -> None:
        self.steps, self.source, self.entity = tuple(steps), source, source.entity
        self.name = f"changed_{source.plural}"
        if steps:
            self.queue = steps[0].queue
            self.undone_by, self.irreversible = steps[0].undone_by, steps[0].irreversible
        else:
            self.irreversible = "it writes nothing"
        self.changes = (source.entity,)

    def prepare(self, context: Context, scope: Scope) -> Counts:
        parameters = scope.parameters | {"entity": self.entity}
        context.connection.execute(text(_FORGET), parameters)
        parent = context.sources[self.entity]
        for child in context.sources.children(self.entity):
            note = _NOTE_CHILDREN.format(
                entity=child.source.entity,
                key=child.key_of("t"),
                parent=child.parent_of("t"),
                table=child.sql,
                scope=scope.condition(child.parent_of("t"), parent.key.base),
            )
            context.connection.execute(text(note), scope.parameters)
        return _sum(step.prepare(context, scope) for step in self.steps)

    def apply(self, context: Context, scope: Scope) -> Counts:
        if not self.steps:
            # It has written nothing, so a rollback keeps nothing of it.
            return {context.migration.plural(self.entity): {"total": 0, "quarantined": 0}}
        found = []
        for step in self.steps:
            found.append(step.apply(context, scope))
            # Before the rows are verified, which a late replay does in the same transaction.
            step.resolve(context, scope)
        return only_written(_sum(found))

    def resolve(self, context: Context, scope: Scope) -> None:
        """Each step closes what it has migrated itself."""

    def withdraw(self, context: Context, scope: Scope) -> Counts:
        return _sum(step.withdraw(context, scope) for step in self.steps)

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        checks = [
            statement
            for step in self.steps
            if step.is_verified
            for statement in (*step.differences(context, scope), *step.details(context, scope))
        ]
        return [*checks, *judgement.of_rows(context, self.entity, scope)]


def late(replay: Replay) -> Replay:
    """The same after the verification: each batch verifies its own rows."""
    made = copy.copy(replay)
    made.name = replay.name.replace("changed_", "late_")
    made.stage, made.is_late = "finish", True
    return made


def _sum(found: Any) -> Counts:
    return functools.reduce(add, found, Counts())


_WAITING = """
SELECT f.entity, f.legacy_key, f.target_table FROM found f
JOIN migration.changes c ON c.entity = f.entity AND c.legacy_key = f.legacy_key
"""
_PARENT_WAITING = """
SELECT f.entity, f.legacy_key, f.target_table FROM found f
JOIN {table} t ON {own} = {key}
JOIN migration.changes c ON c.entity = '{parent}' AND c.owner_key = {owner}::text
WHERE f.entity = '{entity}'
"""


def waiting(sources: Sources) -> str:
    """SQL for what differs only because a change is not replayed yet, of the rows `found`.

    A change of the row itself, or of its parent. Columns: entity, legacy_key, target_table.
    """
    statements = [_WAITING]
    for table in sources.values():
        if table.source.parent:
            statements.append(
                _PARENT_WAITING.format(
                    entity=table.source.entity,
                    parent=table.source.parent,
                    table=table.sql,
                    own=table.key_of("t"),
                    key=sources.key_named(table.source.entity, "f.legacy_key"),
                    owner=table.parent_of("t"),
                )
            )
    return "\nUNION ALL\n".join(statements)
