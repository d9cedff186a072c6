"""The examples of a migration's steps, played on the real server: all of it is rolled back.

An example is a given source row and what becomes of it, as dbt's and SQLMesh's unit tests are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from models.engine import current
from models.engine.copy import Copy
from models.engine.parts import Example
from models.engine.schema import target as target_tables
from models.engine.step import Context, Scope
from models.postgres import refusals
from models.postgres.catalog import Table, quote
from models.postgres.database import transaction
from models.postgres.keys import key_cast
from models.settings import Settings
from producer.checks import rehearsal
from producer.schema import upgrade

RUN = "examples"


class _Undo(Exception):
    """Rolls everything back."""


def count() -> int:
    """How many examples the migration has."""
    return sum(len(step.examples) for step in _steps())


def play(engine: Engine, settings: Settings) -> list[str]:
    """Play all examples; a sentence for each that does not come out as it says.

    On copies beside the tables, in one transaction. Needs CREATE on the database.
    """
    problems: list[str] = []
    try:
        with transaction(engine, statement_timeout_ms=60_000) as connection:
            context = _prepare(connection, settings)
            for step in _steps():
                for number, example in enumerate(step.examples, 1):
                    with connection.begin_nested() as one:
                        found = list(_play(context, step, example))
                        problems += [f"{step.name}, example {number}: {each}" for each in found]
                        one.rollback()
            raise _Undo
    except _Undo:
        return problems


def _steps() -> list[Copy]:
    return [step for step in current.migration().authored if isinstance(step, Copy)]


def _prepare(connection: Connection, settings: Settings) -> Context:
    """Empty copies of all tables, which take rows of a few columns; and a run over them."""
    migration = current.migration()
    sources = migration.read(connection, settings)
    target = target_tables.of(migration.schema, sources)
    copies = rehearsal.make_copies(connection, sources, settings)
    for name in migration.written:
        if name in target.tables:
            rehearsal.copy_table(connection, target.tables[name], name)
    upgrade.bring_up(connection, copies)
    for name, table in sources.by_plural.items():
        for column in table.columns.values():
            if column.not_null and column.name != table.source.key and not column.generated:
                connection.exec_driver_sql(
                    f"ALTER TABLE {rehearsal.COPIES}.{quote(name)}"
                    f" ALTER {quote(column.name)} DROP NOT NULL".replace("%", "%%")
                )
    run = rehearsal.open_run(connection, copies, RUN)
    return replace(Context.read(connection, copies, run), is_repeat=False, own_run=RUN)


def _play(context: Context, step: Copy, example: Example) -> Iterator[str]:
    table = step.table(context)
    assert table is not None
    # As the server writes it: a uuid may be given without its hyphens.
    written = text(f"SELECT CAST(:key AS {key_cast(table.key.base)})::text")
    given = {"key": str(example.given[table.source.key])}
    key = str(context.connection.scalar(written, given))
    try:
        for plural, rows in (example.beside or {}).items():
            for row in rows:
                _insert(context, context.sources.by_plural[plural], row)
        _insert(context, table, example.given)
        step.apply(context, Scope(keys=(key,)))
    except DBAPIError as failure:
        yield f"the database refuses it: {refusals.of(failure.orig).words}"
        return
    reason = context.connection.scalar(
        text(
            "SELECT reason FROM migration.quarantine WHERE entity = :entity AND legacy_key = :key"
        ),
        {"entity": step.entity, "key": key},
    )
    if isinstance(example.expected, str) or reason:
        said = example.expected if isinstance(example.expected, str) else None
        if reason != said:
            yield f"expected {said or 'a migrated row'}, found {reason or 'a migrated row'}"
        return
    for name, wanted in example.expected.items():
        made = [wanted] if isinstance(wanted, Mapping) else list(wanted)
        yield from _compare(context, name, made)


def _compare(context: Context, name: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    table = context.target.table(name)
    found = context.connection.scalar(text(f"SELECT count(*) FROM {table.sql}"))
    if found != len(rows) and name not in context.sources.by_plural:
        yield f"expected {len(rows)} rows in {name}, found {found}"
    for row in rows:
        for column in row:
            if column not in table.columns:
                yield f"{name} has no column {column}"
                return
        conditions = " AND ".join(
            f"{_comparable(table, column, f't.{quote(column)}')} IS NOT DISTINCT FROM"
            f" {_comparable(table, column, f'CAST(:v{n} AS {table.columns[column].type})')}"
            for n, column in enumerate(row)
        )
        parameters = {f"v{n}": _text(value) for n, value in enumerate(row.values())}
        statement = f"SELECT count(*) FROM {table.sql} t WHERE {conditions}"
        if not context.connection.scalar(text(statement), parameters):
            yield f"no row of {name} has {', '.join(f'{c} = {v!r}' for c, v in row.items())}"


def _insert(context: Context, table: Table, row: Mapping[str, Any]) -> None:
    names = ", ".join(map(quote, row))
    values = ", ".join(
        f"CAST(:v{n} AS {table.columns[column].type})" for n, column in enumerate(row)
    )
    context.connection.execute(
        text(f"INSERT INTO {table.sql} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"),
        {f"v{n}": _text(value) for n, value in enumerate(row.values())},
    )


def _comparable(table: Table, column: str, sql: str) -> str:
    return f"{sql}::jsonb" if table.columns[column].base == "json" else sql


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return json.dumps(value) if isinstance(value, (dict, list, bool)) else str(value)
