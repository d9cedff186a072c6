"""Which shipped mapping a database looks like, and a first mapping for one that is like none."""

from __future__ import annotations

import re

from sqlalchemy import Connection

from models.dashboard.mapping import file
from models.dashboard.schema import SCHEMA, TABLES, declare
from models.dashboard.sources import SOURCES
from models.engine.checks import source_tables
from models.engine.schema import additions, target
from models.engine.schema.shape import Shape
from models.engine.source import Source
from models.postgres.catalog import Table, quote_name, read_tables, tables_having
from models.settings import Settings

# Columns that a dashboard may have instead, by the name that the rules have; best first.
_INSTEAD = {
    "gpt_id": (r"gpt_definition_id", r".*gpt.*", r"plan_id", r"name"),
    "preferences": (r"configuration", r"config", r"settings"),
    "status": (r"state",),
    "role": (r"user_role", r"role_name"),
    "email": (r"e_?mail.*", r".*email.*"),
}
_PARENTS = {
    "user": ("id", "email"),
    "subscription": ("id", "user_id"),
    "project": ("id", "user_id"),
}


def fitting(connection: Connection, settings: Settings) -> list[str]:
    """The shipped mappings that a database looks like: what they name is there."""
    found = [name for name in file.known() if _fits(connection, file.load(name), settings)]
    # The tables of July are there today, too.
    return [name for name in found if name != "july-2025" or "today" not in found]


def _fits(connection: Connection, shape: Shape, settings: Settings) -> bool:
    set_here = {
        each.plural: settings.named(each.setting) for each in SOURCES if settings.sets(each.setting)
    }
    if any(set_here.get(name, table) != table for name, table in shape.sources.items()):
        return False
    names = {name: quote_name(table) for name, table in {**shape.sources, **shape.targets}.items()}
    names |= {table: quote_name(shape.target(table)) for table, _ in shape.defaults}
    tables = read_tables(connection, list(dict.fromkeys(names.values())))
    wanted = [
        (plural, path.column) for plural, paths in shape.columns.items() for path in paths.values()
    ] + list(shape.defaults)
    return all(sql in tables for sql in names.values()) and all(
        column in tables[names[table]].columns for table, column in wanted
    )


def text(connection: Connection, settings: Settings) -> str:
    """A mapping file for the tables that are there, with a remark where somebody must choose."""
    shipped = file.known()
    if not settings.mapping and (found := fitting(connection, settings)):
        return shipped[found[0]]
    lines = ["[tables]"]
    tables: dict[str, Table] = {}
    for each in SOURCES:
        table = _table(connection, each, settings)
        if table is None:
            lines.append(f'# {each.plural} = "…": no table looks like it')
        else:
            tables[each.plural] = table
            lines.append(f'{each.plural} = "{table.label}"')
    if len(tables) < len(SOURCES):
        return "\n".join([*lines, ""])
    lines += _targets(connection, tables["users"].schema)
    for each in SOURCES:
        lines += _columns(each, tables[each.plural])
    return "\n".join([*lines, *_defaults(connection, "\n".join(lines)), ""])


def _table(connection: Connection, each: Source, settings: Settings) -> Table | None:
    named = quote_name(settings.named(each.setting))
    if found := read_tables(connection, [named]):
        return found[named]
    names = tables_having(connection, _PARENTS[each.entity])
    alike = [name for name in names if name.strip('"').endswith(each.plural)]
    if not alike:
        return None
    best = min(alike, key=len)
    return read_tables(connection, [best]).get(best)


def _targets(connection: Connection, schema: str) -> list[str]:
    """Target tables that are there under the name of the dashboard's own."""
    names = {quote_name(f"{schema}.dashboard_{name}"): name for name in TABLES}
    found = read_tables(connection, [*names, *(quote_name(f"{schema}.{name}") for name in TABLES)])
    return [
        f'{name} = "dashboard_{name}"'
        for sql, name in names.items()
        if sql in found and quote_name(f"{schema}.{name}") not in found
    ]


def _columns(each: Source, table: Table) -> list[str]:
    """Another column for each that the rules read, that a mapping may name, and that is missing."""
    lines = []
    for name in file.mappable().get(each.plural, ()):
        if name in table.columns:
            continue
        patterns = _INSTEAD.get(name, ())
        instead = next(
            (c for p in patterns for c in table.columns if re.fullmatch(p, c) and c != "id"), None
        )
        if instead:
            lines.append(f'{name} = "{instead}"')
        elif name in each.requires:
            lines.append(f'# {name} = "…": one of {", ".join(table.columns)}')
    return ["", f"[columns.{each.plural}]", *lines] if lines else []


def _defaults(connection: Connection, mapping: str) -> list[str]:
    shape = file.parse("the draft", mapping)
    names = [shape.sources[each.plural] for each in SOURCES]
    beside = target.names(SCHEMA, shape)
    sources, _ = source_tables.examine(connection, SOURCES, names, shape, beside)
    if sources is None or any(each.source.key not in each.columns for each in sources.values()):
        return []
    sources = target.with_ids(connection, SCHEMA, sources)
    found = target.of(SCHEMA, sources)
    lines = []
    for declared in declare(sources).tables.values():
        table = found.tables.get(declared.name)
        if table is None or declared.name in (*sources.by_plural, *SCHEMA.never_filled):
            continue
        for column in table.columns.values():
            is_written = column.name in declared.columns
            if column.not_null and column.default is None and not column.generated | is_written:
                suggested = additions.suggested(column)
                lines.append(f'"{declared.name}.{column.name}" = "{suggested}"')
    return ["", "[defaults]", *lines] if lines else []
