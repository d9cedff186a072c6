"""What the verification expects: rows that must be there, said apart from what writes them.

From an `Expect` follow the differences of a page, the accounting over the whole source, and the
second judgement of what is quarantined. None of it reads what the step itself declares to write.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from models.engine.keys import id_of
from models.engine.source import SourceTable
from models.engine.step import Context, Scope
from models.errors import Incompatible
from models.ledger.quarantine import is_quarantined
from models.postgres.catalog import Table, literal, quote

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
# {id:a}: the derived id of kind `a` of the source row `s`.
_ID = re.compile(r"\{id:(\w)\}")
# What SQLAlchemy's text() takes for a bound parameter, but for those that are bound.
_COLON = re.compile(r"(?<![:\w\\]):(?!(?:run_id|own_run|blanks)\b)(?=\w+(?![:\w]))")
SOURCE_KEY = "source_key"


@dataclass(frozen=True)
class Expect:
    """Rows that must be in `table`: a SELECT over the source that names each column to compare.

    Its column `source_key` is the key of the source row that a row comes from, as a plain column,
    so that a page of keys is a range of an index. `key` is the unique column of the target. Tables
    are written as {placeholders}: sources by plural, targets by name; {id:a} is the derived id of
    kind `a` of the source row `s`.
    """

    table: str
    sql: str
    key: str = "id"

    def __post_init__(self) -> None:
        if not re.search(rf"\b{SOURCE_KEY}\b", self.sql):
            raise Incompatible(
                f"The SELECT that expects rows of {self.table} has no column {SOURCE_KEY}",
                hint=f"Add the source row's key: SELECT s.id AS {SOURCE_KEY}, ...",
            )


def fill(context: Context, sql: str, source: SourceTable | None = None) -> str:
    """An author's SQL with its {placeholders} filled; other braces and colons stay as they are."""
    names = {name: table.sql for name, table in context.target.tables.items()}
    names |= context.sources.names
    if source is not None:
        base = source.key.base
        sql = _ID.sub(lambda found: f"({id_of(found[1], source.key_of('s'), base)})", sql)
    colons = _COLON.sub(r"\\:", sql)
    return _PLACEHOLDER.sub(lambda found: names.get(found[1], found[0]), colons)


def compared(table: Table, column: str, wanted: str, found: str) -> str:
    """SQL condition: the target's column differs from what is expected."""
    base = table.columns[column].base
    if base in ("json", "jsonb"):
        return f"{found}::jsonb IS DISTINCT FROM ({wanted})::jsonb"
    return f"{found} IS DISTINCT FROM CAST({wanted} AS {base})"


def columns_of(context: Context, source: SourceTable, expect: Expect) -> list[str]:
    """The columns that an Expect compares, as its SELECT names them."""
    sql = fill(context, expect.sql, source)
    statement = text(f"SELECT * FROM ({sql}) AS e LIMIT 0")
    result = context.connection.execute(statement, context.parameters)
    names = [name for name in result.keys() if name != SOURCE_KEY]  # noqa: SIM118
    table = context.target.table(expect.table)
    for name in names:
        if name not in table.columns:
            raise Incompatible(f"{table.label} has no column {name}, which a step expects")
    if expect.key not in names:
        raise Incompatible(
            f"The SELECT that expects rows of {expect.table} has no column {expect.key}",
            hint="Name the target's key among its columns.",
        )
    return names


# `e`: what must be there of the page's rows, less those that are quarantined.
_EXPECTED = """
WITH e AS MATERIALIZED (
  SELECT x.*, {wanted_key} AS wanted_key FROM ({sql}) AS x
  WHERE {scope} AND NOT {in_quarantine}
)
"""
_MISSING_OR_WRONG = """
SELECT CASE WHEN t.{key} IS NULL THEN 'missing' ELSE 'wrong_value' END, {entity},
  e.source_key::text, {table_name}, d.detail, e.wanted_key::text, d.expected, d.found
FROM e LEFT JOIN {table} t ON t.{key} = e.wanted_key
LEFT JOIN {written} AS c ON c.source_key = e.source_key::text AND c.row_key = t.{key}::text
CROSS JOIN LATERAL (VALUES {checks}) AS d(detail, differs, expected, found)
WHERE d.differs AND (t.{key} IS NULL) = (d.detail IS NULL)
"""
# A row that an earlier run created: the application may have changed it since.
_CREATED = """(SELECT w.source_key, w.row_key, w.run_id IS DISTINCT FROM :own_run AS is_older,
  NULL::jsonb AS filled FROM migration.created_rows w
  WHERE w.entity = {entity} AND w.table_name = {table_name})"""
# Columns of the source row itself that this run has filled.
_FILLED = """(SELECT i.legacy_key AS source_key, i.legacy_key AS row_key, false AS is_older,
  i.was -> 'filled' AS filled FROM migration.before_images i
  WHERE i.entity = {entity} AND i.run_id = :own_run)"""


def differences(
    context: Context, source: SourceTable, expect: Expect, scope: Scope, names: Sequence[str]
) -> str:
    """The statement that selects what is missing or wrong of a page; columns as of a step's.

    Values are compared of rows that this run created and of columns that it filled, and of rows
    that nobody is known to have created. Others must be there, and a filled column not null.
    """
    table = context.target.table(expect.table)
    is_own = table.oid == source.oid
    checks = [f"(NULL, t.{quote(expect.key)} IS NULL, NULL, NULL)"]
    for name in names:
        if name == expect.key:
            continue
        wanted, found = f"e.{quote(name)}", f"t.{quote(name)}"
        differs = compared(table, name, wanted, found)
        condition = (
            f"({found} IS NULL AND {wanted} IS NOT NULL"
            f" OR c.filled ? {literal(name)} AND {differs})"
            if is_own
            else f"(c.is_older IS NOT TRUE AND {differs})"
        )
        checks.append(f"({literal(name)}, {condition}, ({wanted})::text, {found}::text)")
    written = _FILLED if is_own else _CREATED
    entity, table_name = literal(source.source.entity), literal(expect.table)
    return expected(context, source, expect, scope) + _MISSING_OR_WRONG.format(
        key=quote(expect.key),
        entity=entity,
        table=table.sql,
        table_name=table_name,
        written=written.format(entity=entity, table_name=table_name),
        checks=", ".join(checks),
    )


def expected(context: Context, source: SourceTable, expect: Expect, scope: Scope) -> str:
    """The common table expression `e`: the rows that must be there of a page."""
    base = context.target.table(expect.table).columns[expect.key].base
    return _EXPECTED.format(
        sql=fill(context, expect.sql, source),
        wanted_key=f"CAST(x.{quote(expect.key)} AS {base})",
        scope=scope.condition("x.source_key", source.key.base),
        in_quarantine=is_quarantined(literal(source.source.entity), "x.source_key"),
    )


def good(context: Context, source: SourceTable, expects: Sequence[Expect], accepts: str) -> str:
    """SQL condition on the source row `s`: by the author's second words it is to be migrated.

    That is `accepts`, or that some Expect has a row of it; and its parent exists.
    """
    if accepts:
        condition = f"({fill(context, accepts, source)})"
    else:
        selects = [fill(context, each.sql, source) for each in expects]
        key = source.key_of("s")
        condition = " OR ".join(
            f"EXISTS (SELECT FROM ({select}) AS x WHERE x.source_key = {key})" for select in selects
        )
    parent = context.sources.parent(source)
    if parent is None:
        return f"({condition}) IS TRUE"
    exists = f"SELECT FROM {parent.sql} o WHERE {parent.key_of('o')} = {source.parent_of('s')}"
    return f"(({condition}) IS TRUE AND EXISTS ({exists}))"


def joins(
    context: Context, source: SourceTable, expects: Sequence[Expect], prefix: str
) -> Iterator[tuple[str, str]]:
    """For each Expect a join to the source row `t`, and the column that says all rows are there.

    The column is null for a source row that no row is expected of.
    """
    for number, expect in enumerate(expects):
        table, alias = context.target.table(expect.table), f"{prefix}{number}"
        key = quote(expect.key)
        wanted = f"CAST(x.{key} AS {table.columns[expect.key].base})"
        yield (
            f"LEFT JOIN (SELECT x.source_key, bool_and(m.{key} IS NOT NULL) AS is_there"
            f" FROM ({fill(context, expect.sql, source)}) AS x LEFT JOIN {table.sql} m"
            f" ON m.{key} = {wanted} GROUP BY 1) AS {alias}"
            f" ON {alias}.source_key = {source.key_of('t')}",
            f"{alias}.is_there",
        )


def repeats(expressions: Mapping[str, str], expects: Sequence[Expect]) -> list[str]:
    """The columns whose rule an Expect repeats word for word: a mistake would verify itself.

    A plain column or a constant cannot be said in other words, and is left out.
    """
    plain = re.compile(r"(\w+\.)?\w+|'[^']*'(::\w+)?|-?[\d.]+|true|false|null", re.IGNORECASE)
    said = [_normal(expect.sql) for expect in expects]
    return [
        column
        for column, sql in expressions.items()
        if not plain.fullmatch(sql.strip()) and any(_normal(sql) in each for each in said)
    ]


def _normal(sql: str) -> str:
    return re.sub(r"\s+", "", sql).lower()
