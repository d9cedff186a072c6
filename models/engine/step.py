"""What a step is, and what it is given: a scope of legacy keys and the database as found.

A step is one file. The engine pages through its source, hands each page to `apply` inside the
batch's transaction, and later runs its `differences` over the same pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, text

from models.engine import current
from models.engine.schema import target as target_tables
from models.engine.schema.target import Target
from models.engine.source import Source, Sources, SourceTable
from models.ledger.quarantine import QUARANTINE_AGAIN, quarantine_rows, resolve
from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.postgres import sessions
from models.postgres.deferred import IS_ANY
from models.postgres.keys import list_cast
from models.settings import Settings

if TYPE_CHECKING:
    from models.engine.migration import Migration

Counts = dict[str, Any]
_AROUND = text(f"SELECT EXISTS (SELECT FROM migration.runs WHERE id <> :run_id), {IS_ANY}")
# The queues of the verification, and of the engine's own steps.
VERIFY, CONTROL = "migration.verify", "migration.control"


@dataclass(frozen=True)
class Scope:
    """Legacy keys that a batch covers: a range (low exclusive, high inclusive) or a list.

    `parts`, when given, narrows the rows that hang on those keys to these keys of their own:
    the last step of a bisection, when one row's dependents are tried one by one. `again` says
    that the rows may have been migrated before, and have changed since.
    """

    low: str | None = None
    high: str | None = None
    keys: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None
    again: bool = False
    # Tried first, as if no row were there yet and every document took the shape of its column:
    # guarding against each row and each document costs a fifth of a batch's time.
    is_optimistic: bool = False

    def condition(self, column: str, base_type: str) -> str:
        """SQL condition that `column` lies in this scope; binds :low, :high, :keys."""
        kind = list_cast(base_type)
        if self.keys is not None:
            return f"{column} = ANY(CAST(:keys AS {kind}[]))"
        bounds = []
        if self.low is not None:
            bounds.append(f"{column} > CAST(:low AS {kind})")
        if self.high is not None:
            bounds.append(f"{column} <= CAST(:high AS {kind})")
        return " AND ".join(bounds) or "true"

    def of(self, table: SourceTable, alias: str = "t") -> str:
        """SQL condition that the source row under this alias lies in this scope."""
        return self.condition(table.key_of(alias), table.key.base)

    def parts_condition(self, column: str, base_type: str) -> str:
        """SQL condition on the key of a dependent row; binds :parts."""
        kind = list_cast(base_type)
        return "true" if self.parts is None else f"{column} = ANY(CAST(:parts AS {kind}[]))"

    def unless_there(self, columns: str, do: str = "NOTHING") -> str:
        """The ON CONFLICT clause for a unique key; none where a conflict is not expected."""
        return "" if self.is_optimistic else f"ON CONFLICT ({columns}) DO {do}"

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that the conditions bind."""
        lists = {"keys": self.keys, "parts": self.parts}
        return {
            "low": self.low,
            "high": self.high,
            **{name: list(value) if value is not None else None for name, value in lists.items()},
        }

    def only(self, keys: Sequence[str]) -> Scope:
        """The same kind of scope over these keys."""
        return replace(self, low=None, high=None, keys=tuple(keys))

    def with_parts(self, parts: Sequence[str]) -> Scope:
        """The same keys, with only these of the rows that hang on them."""
        return replace(self, parts=tuple(parts))


@dataclass(frozen=True)
class Context:
    """What a step works with: the connection, the run, the batch, the tables as they stand."""

    connection: Connection
    run_id: str
    batch_id: int
    migration: Migration
    sources: Sources
    target: Target
    # What the migration kept with the run when it was opened (`Migration.constants`).
    constants: Mapping[str, str]
    # Rows were migrated before, by another run or before this one was complete, and may have
    # changed since.
    is_repeat: bool = False
    # The run, where it alone has written what carries its id: statements bind it as :own_run.
    own_run: str | None = None
    # A rollback undoes what somebody changed since, too.
    forced: bool = False
    # The run is of selected rows only (`models.ledger.selection`), and hands none over.
    is_canary: bool = False
    # Constraints or triggers of the database may wait for COMMIT.
    may_defer: bool = True

    @classmethod
    def read(
        cls, connection: Connection, settings: Settings, run: Any, *, batch_id: int = 0
    ) -> Context:
        """The context of a run (a row of the ledger), with the tables as they stand now."""
        migration = current.migration()
        sources = migration.read(connection, settings)
        target = target_tables.of(migration.schema, sources)
        is_repeat, may_defer = connection.execute(_AROUND, {"run_id": run.id}).one()
        return cls(
            connection,
            run.id,
            batch_id,
            migration,
            sources,
            target,
            run.grants,
            is_repeat=is_repeat or run.handed_over,
            own_run=None if run.handed_over else run.id,
            forced=run.forced,
            is_canary=run.selection is not None and run.state != "rolling_back",
            may_defer=may_defer,
        )

    def may_be_there(self, scope: Scope) -> bool:
        """Whether rows of the scope may have been migrated before, by an earlier run or by this."""
        return self.is_repeat or scope.again

    def execute(self, sql: str, scope: Scope, /, **expressions: str) -> Any:
        """Run a step's statement; see `render` for its placeholders. Returns the result."""
        return self.connection.execute(
            text(self.render(sql, **expressions)),
            self.parameters | scope.parameters,
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """The values that statements bind besides those of a scope."""
        names = ("run_id", "own_run", "batch_id", "forced")
        found = {name: getattr(self, name) for name in names}
        return found | {"blanks": sessions.blanks(self.connection)}

    def render(self, sql: str, /, **expressions: str) -> str:
        """Fill {table} placeholders with quoted names and {expression} ones with SQL text.

        Only identifiers and expressions that this package wrote go in here; values are bound.
        """
        names = {name: table.sql for name, table in self.target.tables.items()}
        names |= self.sources.names
        fragments = self.migration.fragments_of(self.sources)
        names |= {name: sql.format(**names) for name, sql in fragments.items()}
        return sql.format(**names, quarantine_again=QUARANTINE_AGAIN, **expressions)

    def hash_by_text(self, entity: str, text: str) -> str:
        """SQL for the hash of the source row that a text names; null for other tables' rows."""
        if entity not in self.sources:
            return "NULL::bigint"
        return self.sources.hash_by_key(entity, self.sources.key_named(entity, text))

    def type_of(self, table: str, column: str) -> str:
        """SQL type of a target column, for a cast."""
        return self.target.table(table).columns[column].type


class Step:
    """One step of the migration. Subclasses set the names and override what they need."""

    name: str = ""
    stage: str = ""
    queue: str = "migration.rows"
    # The source that it pages through.
    source: Source | None = None
    # The entity that its keys are of.
    entity: str = ""
    # The entity of the rows that hang on those (see `dependents`).
    part_entity: str = ""
    # The target table with a row for each of those.
    part_table: str = ""
    # False: `apply` runs outside a transaction, key by key, and is idempotent (docs/engine.md).
    transactional: bool = True
    # Microseconds that a row takes, roughly: how steps compare decides how large the first pages of
    # a light one are, and the time that is left while the run has no pace.
    weight: int = 25
    # False: it pages through rows that another step of its stage goes through, too.
    is_counted: bool = True
    # Takes the same time whatever the number of rows.
    is_constant: bool = False
    # Applied after the verification: each batch verifies its own rows at once (see `recheck`).
    is_late: bool = False
    # Runs in transactions of its own, the last one under a lock (`worker.cutover`).
    is_cutover: bool = False
    # Gives the rows to the new application, for good: a canary leaves the step out.
    hands_over: bool = False
    # Overrides `key_lists`: its batches are lists of keys, in rounds, and never pages.
    takes_lists: bool = False
    # The verification repeats it with `differences` and `details`; or why it does not.
    is_verified: bool = False
    unverified: str = ""
    # The command that fixes what this step's checks find.
    fix: str = "producer retry --wait"
    # The name of the step that undoes what it writes; or why none can.
    undone_by: str = ""
    irreversible: str = ""
    # `apply` itself marks quarantined rows as resolved that it migrates; else the engine does.
    resolves: bool = False

    def at(self, stage: str) -> Self:
        """The same step in another stage."""
        self.stage = stage
        return self

    @property
    def writes_rows(self) -> bool:
        """Whether it pages through a source to write rows, as an author's step does."""
        checks = (VERIFICATION, RECONCILIATION)
        return bool(self.entity) and self.stage not in checks and not self.takes_lists

    def table(self, context: Context) -> SourceTable | None:
        """The table to page through by its key; None when the step has items instead.

        The last page is open above: it covers whatever sorts behind the last row.
        """
        table = context.sources[self.source.entity] if self.source else None
        return None if table is None or table.nothing else table

    def can_try(self, context: Context) -> bool:
        """Whether a trial may apply a step without a source: it can be undone, and is allowed."""
        return False

    def items(self, context: Context) -> list[str]:
        """The keys of a step without a source: a batch each, or one (see `transactional`)."""
        return []

    def key_lists(self, context: Context, round_: int) -> list[list[str]] | None:
        """The batches of a step that takes lists of keys instead of pages; None for pages.

        Asked again with the next number when a round is done, until there is none left.
        """
        if self.table(context) is not None:
            return None
        return [[item] for item in self.items(context)] if round_ == 0 else []

    def prepare(self, context: Context, scope: Scope) -> Counts:
        """Lock what `apply` must find unchanged; once a batch, however often it is halved."""
        return {}

    def apply(self, context: Context, scope: Scope) -> Counts:
        """Write what the scope's rows must become; counts what was seen, written, quarantined.

        Safe to repeat: what is there already is left as it is. Bad rows that the statement can
        name go to the quarantine; anything else raises, and the engine bisects.
        """
        raise TypeError(f"The step {self.name} only checks")

    def quarantine(self, context: Context, entity: str, keys: Sequence[str], **why: Any) -> None:
        """Note rows that cannot be done: `reason`, `message` and `attempts`, as in a quarantine."""
        why["row_hash"] = context.hash_by_text(entity, "key")
        quarantine_rows(context.connection, context.run_id, context.batch_id, entity, keys, **why)

    def resolve(self, context: Context, scope: Scope) -> None:
        """Close what was quarantined earlier of rows that `apply` has just migrated."""
        table = None if self.resolves or not self.entity else self.table(context)
        if table is None:
            return
        names = {"entity": self.entity, "step": self.name, "batch_id": context.batch_id}
        resolve(
            context.connection,
            table.sql,
            table.key_of("t"),
            scope.of(table),
            scope.parameters,
            **names,
        )

    def withdraw(self, context: Context, scope: Scope) -> Counts:
        """Take away what earlier batches of the run made of rows that were just quarantined."""
        return {}

    def differences(self, context: Context, scope: Scope) -> list[str]:
        """Statements that each select what is wrong in the scope, for the verification.

        Rows are (kind, entity, legacy_key, target_table, detail), or these and (target_key,
        expected, found), as text for `producer differences --values`: they are never stored. No
        statement is shared with `apply`.
        """
        return []

    def details(self, context: Context, scope: Scope) -> list[str]:
        """More of `differences`, not needed where `account` says that the page matches."""
        return []

    def recheck(self, context: Context, scope: Scope) -> list[str]:
        """Statements like those of `differences`, run right after `apply` where it comes late."""
        return []

    def reconcile_again(self, context: Context, scope: Scope) -> list[str]:
        """The same for the reconciliation, which lists what they find as its own."""
        return []

    def account(self, context: Context, scope: Scope) -> str:
        """A statement that counts the scope's legacy rows: one row, columns are counts.

        Where it has a column `matches`, a true one says that `details` would find nothing.
        """
        return ""

    def dependents(self, context: Context) -> SourceTable | None:
        """The source whose rows belong to this step's rows, and are tried one by one last."""
        return context.sources.get(self.part_entity)

    def keys_in(self, context: Context, scope: Scope) -> list[str]:
        """The source keys of a scope, in key order; those of a list as they are."""
        table = self.table(context)
        if table is None or scope.keys is not None:
            return list(scope.keys or ())
        return _keys(context, table, scope.of(table), scope)

    def part_keys_in(self, context: Context, scope: Scope) -> list[str]:
        """The keys of the dependents of a scope's rows, in key order."""
        table = self.dependents(context)
        if table is None:
            return []
        # Cast to the parents' own type: the column may be a smaller integer.
        base = context.sources[table.source.parent].key.base
        return _keys(context, table, scope.condition(table.parent_of("t"), base), scope)


def _keys(context: Context, table: SourceTable, condition: str, scope: Scope) -> list[str]:
    key = table.key_of("t")
    statement = f"SELECT {key}::text FROM {table.sql} t WHERE {condition} ORDER BY {key}"
    return list(context.connection.scalars(text(statement), scope.parameters))


def entities(row: Any) -> Counts:
    """Totals and quarantined rows, from columns `badges` and `badges_quarantined`."""
    found = row._mapping
    return {
        name: {"total": found[name], "quarantined": found[f"{name}_quarantined"]}
        for name in found
        if f"{name}_quarantined" in found
    }


def counts(row: Any) -> Counts:
    """A statement's counts as the ledger keeps them: entities, rows written, amounts."""
    found, migration = row._mapping, current.migration()
    return (
        entities(row)
        | {"rows": {name: found[name] for name in migration.written if name in found}}
        | {name: str(found.get(name, 0)) for name in migration.amounts}
    )


def only_written(found: Counts) -> Counts:
    """Of what was counted, the rows written: how the source rows stand is counted elsewhere."""
    return {name: found[name] for name in ("rows", *current.migration().amounts) if name in found}


def add(first: Counts, second: Counts) -> Counts:
    """The sum of two counts, name by name, nested ones too; amounts of money are strings."""
    total = dict(first)
    for name, value in second.items():
        present = total.get(name)
        if present is None:
            total[name] = value
        elif isinstance(value, dict):
            total[name] = add(present, value)
        elif isinstance(value, str):
            total[name] = str(Decimal(present) + Decimal(value))
        else:
            total[name] = present + value
    return total
