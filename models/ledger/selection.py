"""The selection of a canary: keys of the root, the source that all others belong to.

A row of another source is selected if its parent is. A run without a selection is of all rows, and
each condition here is `true` for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from models.errors import Misconfigured, NotAllowed
from models.ledger.tables import metadata, runs
from models.reports.words import number

if TYPE_CHECKING:
    from models.engine.migration import Migration
    from models.engine.source import Sources, SourceTable
    from models.engine.step import Context

selection = sa.Table(
    "selection",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey(runs.c.id), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
)
MOST_NAMED = 5
# A key's place among all keys, in 2^30 parts, which no other key has a say in.
_BY_PERCENT = """
SELECT {key}::text FROM {table} t
WHERE hashtextextended({key}::text COLLATE "C", 0) & 1073741823 < :percent * 10737418.24
"""
_BY_KEY = """
SELECT w.word, {key}::text AS key
FROM unnest(CAST(:words AS text[])) AS w(word) LEFT JOIN {table} t ON {key} = {named}
"""


@dataclass(frozen=True)
class Choice:
    """What an operator chose: a part of the root's rows in percent, or these keys of it."""

    percent: float | None = None
    only: tuple[str, ...] = ()

    def __str__(self) -> str:
        return said({"percent": self.percent, "keys": len(self.only)})

    @property
    def options(self) -> str:
        """The options of `producer enqueue-all` that choose this."""
        return "--only KEYS" if self.percent is None else f"--percent {self.percent:g}"


def said(kept: dict[str, Any] | None) -> str:
    """A run's selection in words, as the ledger keeps it."""
    if kept is None:
        return "all rows"
    chosen = number(kept["keys"], "key")
    return chosen if kept["percent"] is None else f"{kept['percent']:g} %, {chosen}"


def options_of(kept: dict[str, Any] | None) -> str:
    """The options of `producer enqueue-all` that join a run with this selection."""
    return "" if kept is None else " " + Choice(kept["percent"]).options


def choose(
    connection: Connection, migration: Migration, sources: Sources, choice: Choice
) -> list[str]:
    """The keys of a choice; raises Misconfigured where it names a key that no row has, or none.

    Needs no ledger: a choice is tried before anything is changed.
    """
    root = _root(migration, sources)
    names = {"key": root.key_of("t"), "table": root.sql}
    if choice.percent is not None:
        statement = text(_BY_PERCENT.format(**names))
        found = list(connection.scalars(statement, {"percent": choice.percent}))
        if not found:
            raise Misconfigured(
                f"{choice.percent:g} % of {root.label} are no rows at all",
                hint="Choose more, or name keys: --only KEYS. No run was opened.",
            )
        return found
    named = sources.key_named(root.source.entity, "w.word")
    statement = text(_BY_KEY.format(**names, named=named))
    rows = connection.execute(statement, {"words": list(choice.only)}).all()
    unknown = [row.word for row in rows if row.key is None]
    if unknown or not rows:
        listed = ", ".join(unknown[:MOST_NAMED]) + (", …" if len(unknown) > MOST_NAMED else "")
        raise Misconfigured(
            f"{root.label} has no row with the key {listed}" if rows else "--only names no key",
            hint="Give keys that are there: --only A,B,C. No run was opened.",
        )
    return sorted({row.key for row in rows})


def _root(migration: Migration, sources: Sources) -> SourceTable:
    """The source without a parent; raises Misconfigured where the others do not belong to it."""
    declared = migration.sources
    roots = [source for source in declared if not source.parent]
    strays = [s for s in declared if s.parent and s.parent != roots[0].entity] or roots[1:]
    if strays:
        raise Misconfigured(
            f"The migration {migration.name} has no canary: {strays[0].plural} do not"
            f" belong to {roots[0].plural}",
            hint="--only and --percent need sources whose parent is the first one."
            " Migrate all: producer enqueue-all --wait",
        )
    return sources[roots[0].entity]


def keep(context: Context, choice: Choice, keys: Sequence[str]) -> None:
    """Write the selection of a run that was just opened."""
    rows = text(
        "INSERT INTO migration.selection (run_id, key)"
        " SELECT :run_id, key FROM unnest(CAST(:keys AS text[])) AS key"
    )
    context.connection.execute(rows, {"run_id": context.run_id, "keys": list(keys)})
    # Taken for empty, it would be looped over for each row of a source.
    context.connection.exec_driver_sql("ANALYZE migration.selection")
    kept = {"percent": choice.percent, "keys": len(keys)}
    run = sa.update(runs).where(runs.c.id == context.run_id)
    context.connection.execute(run.values(selection=kept))


def require_same(
    connection: Connection, run: Any, choice: Choice | None, read: Callable[[], Context]
) -> None:
    """Raise NotAllowed where an open run has another selection than a command that would join.

    `read` gives the run's context, which only named keys need.
    """
    if run.selection is None or choice is None:
        is_same = run.selection is None and choice is None
    elif choice.percent is not None:
        is_same = run.selection["percent"] == choice.percent
    else:
        found = sa.select(selection.c.key).where(selection.c.run_id == run.id)
        kept = set(connection.scalars(found))
        context = read()
        chosen = choose(connection, context.migration, context.sources, choice)
        is_same = run.selection["percent"] is None and kept == set(chosen)
    if not is_same:
        raise NotAllowed(
            f"Run {run.id} is open and is of {said(run.selection)}, not of {choice or 'all rows'}",
            hint=f"Join it: producer enqueue-all{options_of(run.selection)} --wait. Or wait for its"
            " end, and try again.",
        )


def require_no_full_run(connection: Connection, standing: Sequence[str]) -> None:
    """Raise NotAllowed for a canary while rows of a run of all rows are in the database."""
    query = sa.select(runs.c.id, runs.c.state).where(
        runs.c.id.in_(standing), runs.c.selection.is_(None)
    )
    full = connection.execute(query.order_by(runs.c.id.desc()).limit(1)).one_or_none()
    if full is not None:
        raise NotAllowed(
            f"Run {full.id} of all rows is {full.state}: there is nothing left to try on a part",
            hint="Migrate what is new: producer enqueue-all --wait. Or undo that run first:"
            " producer rollback --wait",
        )


def condition(context: Context, table: SourceTable, alias: str) -> str:
    """SQL condition that the row under this alias is selected; binds :run_id."""
    if not context.is_canary:
        return "true"
    root = table.source.parent or table.source.entity
    key = context.sources.key_named(root, "x.key")
    return (
        f"{table.root_of(alias)} IN"
        f" (SELECT {key} FROM migration.selection x WHERE x.run_id = :run_id)"
    )


def of_change(context: Context, alias: str = "c") -> str:
    """SQL condition that a captured change is of a selected row; binds :run_id."""
    if not context.is_canary:
        return "true"
    return (
        f"{alias}.owner_key IN (SELECT x.key FROM migration.selection x WHERE x.run_id = :run_id)"
    )


def keys(context: Context, table: SourceTable, *, after: str | None, most: int) -> list[str]:
    """The next selected keys of a source behind `after`, in the order of the key."""
    key = table.key_of("t")
    behind = f"{key} > {context.sources.key_named(table.source.entity, 'CAST(:after AS text)')}"
    statement = (
        f"SELECT {key}::text FROM {table.sql} t WHERE {condition(context, table, 't')}"
        f" AND {'true' if after is None else behind} ORDER BY {key} LIMIT :most"
    )
    values = {"run_id": context.run_id, "after": after, "most": most}
    return list(context.connection.scalars(text(statement), values))


def among(context: Context, entity: str, found: Sequence[str]) -> list[str]:
    """Those of the keys whose rows are selected."""
    table = context.sources[entity]
    key = table.key_of("t")
    statement = (
        f"SELECT {key}::text FROM {table.sql} t WHERE {key}::text = ANY(CAST(:found AS text[]))"
        f" AND {condition(context, table, 't')} ORDER BY {key}"
    )
    values = {"run_id": context.run_id, "found": list(found)}
    return list(context.connection.scalars(text(statement), values))


def count(context: Context) -> dict[str, int]:
    """Selected rows by entity; and none for each step that a canary leaves out."""
    totals = {
        entity: int(
            context.connection.scalar(
                text(f"SELECT count(*) FROM {t.sql} t WHERE {condition(context, t, 't')}"),
                {"run_id": context.run_id},
            )
            or 0
        )
        for entity, t in context.sources.declared.items()
    }
    return totals | {step.name: 0 for step in context.migration.steps if step.hands_over}
