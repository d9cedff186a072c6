"""A declared step: each source row becomes rows of other tables, or fills columns of its own.

From the declaration follow the statement that writes, the replay of later changes, the quarantine
and the undo. The verification does not follow from it: `expects` says the rule a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import text

from models.engine import keys, statements
from models.engine.authored import Authored
from models.engine.checks import expects as verifying
from models.engine.parts import (
    Example,
    Expression,
    Fill,
    Insert,
    Reject,
    derived_id,
)
from models.engine.rollback import NOTE
from models.engine.source import SourceTable
from models.engine.step import Context, Counts, Scope, add
from models.ledger.quarantine import (
    OWNER_IS_QUARANTINED,
    OWNER_QUARANTINED,
    QUARANTINE_AGAIN,
    is_quarantined,
)
from models.postgres.catalog import Table, literal, quote
from models.postgres.keys import key_cast


class Copy(Authored):
    """A step that is declared. Subclasses set `source`, what is written, and what is expected."""

    rejects: Sequence[Reject] = ()
    inserts: Sequence[Insert] = ()
    fills: Fill | None = None
    examples: Sequence[Example] = ()
    resolves = True

    def __init__(self) -> None:
        if self.fills is not None:
            self.source = replace(self.source, writes=tuple(self.fills.columns))
        super().__init__()

    def apply(self, context: Context, scope: Scope) -> Counts:
        source = self.table(context)
        is_there = context.may_be_there(scope)
        found: Counts = self._bring_in_line(context, source, scope) if is_there else {}
        row = context.connection.execute(
            text(self._statement(context, source, scope)), context.parameters | scope.parameters
        ).one()
        rows = {each.table: 0 for each in self.inserts}
        for number, each in enumerate(self.inserts):
            rows[each.table] += getattr(row, f"made_{number}")
        counted = {"total": row.total, "quarantined": row.quarantined}
        return add(found, {source.source.plural: counted, "rows": rows})

    def withdraw(self, context: Context, scope: Scope) -> Counts:
        return self._bring_in_line(context, self.table(context), scope)

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return [*super().differences(context, scope), *self._extra(context, scope)]

    def undo(self, context: Context, scope: Scope | None) -> Counts:
        source = self.table(context)
        parameters = context.parameters | (scope.parameters if scope else {})
        rows: dict[str, int] = {}
        for each in reversed(self.inserts):
            undo = statements.UNDO.format(
                **self._names(context, source, each),
                note=NOTE,
                of_scope=_of_scope(source, scope, "c.source_key"),
            )
            removed = context.connection.scalar(text(undo), parameters)
            rows[each.table] = rows.get(each.table, 0) + int(removed or 0)
        if self.fills is not None and scope is not None:
            of_scope = _of_scope(source, scope, "i.legacy_key")
            unfill = self._unfill(source, self.fills, of_scope)
            context.connection.execute(text(unfill), parameters)
        return {"rows": rows}

    @property
    def written(self) -> tuple[str, ...]:
        """The target tables that it inserts into."""
        return tuple(dict.fromkeys(each.table for each in self.inserts))

    def repeated_rules(self) -> list[str]:
        """Columns whose rule `expects` repeats word for word."""
        expressions = {
            f"{each.table}.{name}": value
            for each in self.inserts
            for name, value in each.columns.items()
            if isinstance(value, str)
        }
        if self.fills is not None:
            filled = self.fills.columns.items()
            expressions |= {f"{self.source.plural}.{n}": v for n, v in filled if isinstance(v, str)}
        return verifying.repeats(expressions, self.expects)

    def _reason(self, context: Context, source: SourceTable) -> tuple[str, str]:
        """SQL for why the row `s` is bad, null for a good one; and the WHENs of the messages."""
        reasons = {each.reason: (each.when, each.message) for each in self.rejects}
        parent = context.sources.parent(source)
        if parent is not None:
            key = source.parent_of("s")
            exists = f"EXISTS (SELECT FROM {parent.sql} o WHERE {parent.key_of('o')} = {key})"
            in_quarantine = is_quarantined(literal(parent.source.entity), key)
            reasons = {
                "owner_missing": (f"NOT {exists}", "The owner does not exist."),
                OWNER_QUARANTINED: (in_quarantine, OWNER_IS_QUARANTINED),
            } | reasons
        whens = [
            f"WHEN {verifying.fill(context, when)} THEN {literal(reason)}"
            for reason, (when, _) in reasons.items()
        ]
        messages = [
            f"WHEN {literal(reason)} THEN {literal(message)}"
            for reason, (_, message) in reasons.items()
        ]
        reason = f"CASE {' '.join(whens)} END" if whens else "NULL::text"
        return reason, " ".join(messages) or "WHEN '' THEN ''"

    def _statement(self, context: Context, source: SourceTable, scope: Scope) -> str:
        reason, messages = self._reason(context, source)
        written, counts = "", ""
        for number, each in enumerate(self.inserts):
            names = self._names(context, source, each)
            columns = ", ".join(map(quote, each.columns))
            rows = self._rows(context, source, each, "s")
            returned = _hash(each, context.target.table(each.table), quote(each.table))
            names |= {"n": str(number), "rows": rows, "columns": columns, "hash": returned}
            written += statements.INSERT.format(**names)
            counts += f",\n  (SELECT count(*) FROM made_{number}) AS made_{number}"
        if self.fills is not None:
            written += self._filling(context, source, scope, self.fills)
        return statements.APPLY.format(
            reason=reason,
            source=source.sql,
            scope=scope.of(source, "s"),
            written=written,
            entity=literal(source.source.entity),
            key=source.key_of("s"),
            messages=messages,
            row_hash=context.sources.hash_of(source.source.entity, "s"),
            quarantine_again=QUARANTINE_AGAIN,
            counts=counts,
        )

    def _filling(self, context: Context, source: SourceTable, scope: Scope, fills: Fill) -> str:
        columns = {name: _sql(value, source) for name, value in fills.columns.items()}
        columns = {name: verifying.fill(context, f"({value})") for name, value in columns.items()}
        is_free = {
            name: f"(u.{quote(name)} IS NULL OR (i.was -> 'filled' ? {literal(name)}) IS TRUE)"
            for name in columns
        }
        assignments = (
            f"{quote(name)} = CASE WHEN {is_free[name]} THEN {value} ELSE u.{quote(name)} END"
            for name, value in columns.items()
        )
        differs = (
            f"{is_free[name]} AND u.{quote(name)} IS DISTINCT FROM {value}"
            for name, value in columns.items()
        )
        values = ", ".join(f"{literal(name)}, u.{quote(name)}::text" for name in columns)
        # Columns that had a value are none of the run's.
        kept = (
            f"CASE WHEN s.{quote(name)} IS NOT NULL AND (i.was -> 'filled' ? {literal(name)})"
            f" IS NOT TRUE THEN {literal(name)} ELSE '' END"
            for name in columns
        )
        return statements.FILL.format(
            source=source.sql,
            assignments=", ".join(assignments),
            u_key=source.key_of("u"),
            key=source.key_of("s"),
            own_scope=scope.of(source, "u"),
            differs_any=" OR ".join(differs),
            values=f"jsonb_strip_nulls(jsonb_build_object({values}))",
            entity=literal(source.source.entity),
            kept=", ".join(kept),
        )

    def _unfill(self, source: SourceTable, fills: Fill, of_scope: str) -> str:
        def is_ours(name: str) -> str:
            same = f"u.{quote(name)}::text IS NOT DISTINCT FROM i.filled ->> {literal(name)}"
            return f"i.filled ? {literal(name)} AND (:forced OR {same})"

        assignments = (
            f"{quote(c)} = CASE WHEN {is_ours(c)} THEN NULL ELSE u.{quote(c)} END"
            for c in fills.columns
        )
        changes = (
            f"({literal(c)}, i.filled ? {literal(c)} AND NOT ({is_ours(c)}))" for c in fills.columns
        )
        return statements.UNFILL.format(
            entity=literal(source.source.entity),
            plural=literal(source.source.plural),
            source=source.sql,
            u_key=source.key_of("u"),
            assignments=", ".join(assignments),
            changes=", ".join(changes),
            note=NOTE,
            of_scope=of_scope,
        )

    def _names(self, context: Context, source: SourceTable, insert: Insert) -> dict[str, str]:
        table = context.target.table(insert.table)
        return {
            "entity": literal(source.source.entity),
            "table": table.sql,
            "table_name": literal(insert.table),
            "key": quote(insert.key),
            "hash": _hash(insert, table, "t"),
        }

    def _rows(self, context: Context, source: SourceTable, insert: Insert, rows: str) -> str:
        """A SELECT of what an Insert makes of the good rows `rows`, with the source row's key."""
        table = context.target.table(insert.table)
        columns = {name: _sql(value, source) for name, value in insert.columns.items()}
        # Without a length, so that what is too long is refused and not cut.
        chosen = ", ".join(
            f"CAST(({verifying.fill(context, value)}) AS {key_cast(table.columns[name].base)})"
            f" AS {quote(name)}"
            for name, value in columns.items()
        )
        base = table.columns[insert.key].base
        each = f" CROSS JOIN LATERAL {verifying.fill(context, insert.each)}" if insert.each else ""
        own_key = verifying.fill(context, columns[insert.key])
        return (
            f"SELECT {source.key_of('s')}::text AS source_key_,"
            f" CAST(({own_key}) AS {base})::text AS row_key_, {chosen}"
            f" FROM {rows} s{each} WHERE {verifying.fill(context, insert.where)}"
        )

    def _bring_in_line(self, context: Context, source: SourceTable, scope: Scope) -> Counts:
        """Remove rows that the source rows no longer make, and change those that they make anew."""
        reason, _ = self._reason(context, source)
        entity = literal(source.source.entity)
        in_quarantine = is_quarantined(entity, source.key_of("s"), "q.batch_id = :batch_id")
        good = (
            f"(SELECT s.* FROM {source.sql} s WHERE {scope.of(source, 's')}"
            f" AND ({reason}) IS NULL AND NOT {in_quarantine})"
        )
        parameters = context.parameters | scope.parameters
        counts: dict[str, int] = {}
        if self.fills is not None:
            listed = _of_scope(source, scope, "i.legacy_key")
            good_keys = f"SELECT {source.key_of('s')}::text FROM {good} s"
            of_bad = f"{listed} AND i.legacy_key NOT IN ({good_keys})"
            unfill = self._unfill(source, self.fills, of_bad)
            context.connection.execute(text(unfill), parameters)
        for each in reversed(self.inserts):
            names = self._names(context, source, each)
            names |= {"rows": self._rows(context, source, each, good)}
            names |= {"of_scope": _of_scope(source, scope, "c.source_key", is_listed=True)}
            names["assignments"] = ", ".join(
                f"{quote(name)} = r.{quote(name)}" for name in each.columns if name != each.key
            )
            removed = context.connection.scalar(text(statements.REMOVE.format(**names)), parameters)
            counts[each.table] = counts.get(each.table, 0) + int(removed or 0)
            if names["assignments"]:
                context.connection.execute(text(statements.CHANGE.format(**names)), parameters)
        return {"rows": counts}

    def whole(self, context: Context) -> list[str]:
        """Rows that stand under an id of the migration's own form, and that no run created."""
        source, found = self.table(context), []
        for each in self.inserts:
            made = each.columns[each.key]
            if isinstance(made, derived_id):
                names = self._names(context, source, each)
                is_kind = keys.has_kind(made.kind, f"t.{quote(each.key)}")
                found.append(statements.STRAYS.format(**names, is_kind=is_kind))
        return found

    def _extra(self, context: Context, scope: Scope) -> list[str]:
        source, found = self.table(context), []
        for each in self.inserts:
            of_table = [expect for expect in self.expects if expect.table == each.table]
            if not of_table:
                continue
            names = self._names(context, source, each)
            names |= {"of_scope": _of_scope(source, scope, "c.source_key", is_listed=True)}
            sql = verifying.expected(context, source, of_table[0], scope) + statements.EXTRA.format(
                **names
            )
            if not each.each:
                sql += statements.EXTRA_BY_ID.format(
                    **names,
                    source=source.sql,
                    source_key=source.key_of("s"),
                    scope=scope.of(source, "s"),
                    id=verifying.fill(context, _sql(each.columns[each.key], source)),
                    key_type=context.target.table(each.table).columns[each.key].base,
                )
            found.append(sql)
        return found


def _sql(expression: Expression, source: SourceTable) -> str:
    return expression if isinstance(expression, str) else expression(source)


def _hash(insert: Insert, table: Table, alias: str) -> str:
    """SQL for a hash of the columns that an Insert writes, as they are stored."""
    columns = ", ".join(f"{alias}.{quote(name)}" for name in insert.columns)
    return f'hashtextextended(ROW({columns})::text COLLATE "C", 0)'


def _of_scope(
    source: SourceTable, scope: Scope | None, key: str, *, is_listed: bool = False
) -> str:
    """SQL condition: the text `key` names a source row of the scope.

    None: of no source row that exists. A list names also rows that are gone.
    """
    own = f"SELECT {source.key_of('o')}::text FROM {source.sql} o"
    if scope is None:
        return f"NOT EXISTS ({own} WHERE {source.key_of('o')}::text = {key})"
    if scope.keys is not None and is_listed:
        return f"{key} = ANY(CAST(:keys AS text[]))"
    return f"{key} IN ({own} WHERE {scope.of(source, 'o')})"
