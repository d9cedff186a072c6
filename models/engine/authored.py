"""What an author writes: a step over one source, how it is verified, and how it is undone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from models.engine.checks import expects as verifying
from models.engine.checks.expects import Expect
from models.engine.rollback import lock_rows, note_refused
from models.engine.source import Source, SourceTable
from models.engine.step import Context, Counts, Scope, Step


class Authored(Step):
    """One step of a migration. Subclasses set `source`, and write `apply`, `expects` and `undo`.

    The name, the stage and the entity follow from the source. `accepts` is SQL on the source row
    `s`, in words of its own, that holds for every row that is to be migrated; without it, a row is
    to be migrated when some Expect has a row of it. `irreversible = "why"` takes the place of
    `undo`.
    """

    source: Source
    expects: Sequence[Expect] = ()
    accepts: ClassVar[str] = ""

    def __init__(self) -> None:
        self.entity = self.source.entity
        self.name = self.name or self.source.plural
        self.stage = self.stage or self.name
        self.is_verified = bool(self.expects)

    def table(self, context: Context) -> SourceTable:
        return context.sources[self.source.entity]

    def undo(self, context: Context, scope: Scope | None) -> Counts:
        """Take back what the run wrote of a page, or of all source rows that are gone (None).

        What somebody changed since is a conflict and stays, unless `context.forced`.
        """
        raise NotImplementedError

    @property
    def written(self) -> tuple[str, ...]:
        """The target tables that it writes, by name, for the counts of a report."""
        return ()

    @property
    def has_undo(self) -> bool:
        """Whether the author wrote how the step is undone."""
        return type(self).undo is not Authored.undo

    def differences(self, context: Context, scope: Scope) -> list[str]:
        table = self.table(context)
        return [
            verifying.differences(
                context, table, each, scope, verifying.columns_of(context, table, each)
            )
            for each in self.expects
        ]

    def account(self, context: Context, scope: Scope) -> str:
        table = self.table(context)
        return _ACCOUNT.format(
            plural=table.source.plural,
            table=table.sql,
            entity=table.source.entity,
            key=table.key_of("t"),
            scope=scope.of(table),
        )

    def whole(self, context: Context) -> list[str]:
        """Statements like those of `differences` over whole tables, run once after all pages."""
        return []


_ACCOUNT = """
SELECT count(*) AS {plural}, count(q.legacy_key) AS {plural}_quarantined FROM {table} t
LEFT JOIN migration.quarantine q ON q.entity = '{entity}' AND q.legacy_key = {key}::text
  AND q.state IN ('open', 'accepted')
WHERE {scope}
"""


class UndoOf(Step):
    """The undo of an author's step, page by page."""

    def __init__(self, step: Authored) -> None:
        self.step = step
        self.name = self.stage = f"undo_{step.name}"
        self.source, self.entity, self.queue = step.source, step.entity, step.queue

    def prepare(self, context: Context, scope: Scope) -> Counts:
        lock_rows(context, self.step.table(context), scope)
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        return self.step.undo(context, scope)

    def quarantine(self, context: Context, entity: str, keys: Sequence[str], **why: Any) -> None:
        note_refused(context, self.step.source.plural, keys)
