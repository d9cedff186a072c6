"""The mapping file (`MIGRATION_MAPPING`): read, validated, and turned into a shape.

Every mistake is named at once, each with its line, its key and what would be right.
"""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from models.dashboard.mapping import lines
from models.dashboard.schema import TABLES
from models.engine.schema import shape
from models.engine.schema.shape import Shape
from models.errors import OtherTables

SUFFIX = ".toml"
_TABLE = re.compile(r"(?:[^.\s\":%][^.\":%]*\.)?[^.\s\":%][^.\":%]*")
_COLUMN = re.compile(r"[^.\s\":%][^.\":%]*")
_ARROW = re.compile(r"(?P<own>[^.>\"]+?)\s*->\s*(?P<table>[^>\"]+)\.(?P<value>[^.>\"]+)")


def _table(name: object) -> object:
    if isinstance(name, str) and not _TABLE.fullmatch(name):
        raise ValueError("must be the name of a table, or schema.table")
    return name


def _target(name: object) -> object:
    if isinstance(name, str) and not _COLUMN.fullmatch(name):
        raise ValueError(
            "must be the name of a table, without a schema: it is in that of the users"
        )
    return name


def _path(path: object) -> object:
    if isinstance(path, str):
        is_column = "->" not in path and _COLUMN.fullmatch(path)
        if not is_column and not _parse(path):
            raise ValueError('must be "column" or "column -> table.column"; SQL is not taken')
    return path


def _parse(path: str) -> shape.Path | None:
    found = _ARROW.fullmatch(path.strip())
    if not found or not _TABLE.fullmatch(found["table"]) or not _COLUMN.fullmatch(found["value"]):
        return None
    return shape.Path(found["own"], found["table"], found["value"])


def _constant(value: object) -> object:
    if isinstance(value, dict):
        raise ValueError('must be "table.column" in quotes, such as "organizations.status"')
    if not isinstance(value, str | int | float | bool):
        raise ValueError('must be a text, a number, true, false or "now()"')
    return str(value).lower() if isinstance(value, bool) else str(value)


_Source = Annotated[str, BeforeValidator(_table)]
_Target = Annotated[str, BeforeValidator(_target)]
_Path = Annotated[str, BeforeValidator(_path)]
_Constant = Annotated[str, BeforeValidator(_constant)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tables(_Strict):
    """Names of tables. The settings of the three source tables go before these."""

    users: _Source | None = None
    subscriptions: _Source | None = None
    projects: _Source | None = None
    organizations: _Target | None = None
    departments: _Target | None = None
    ai_suites: _Target | None = None
    ai_tools: _Target | None = None
    tool_assignments: _Target | None = None
    tool_usage_logs: _Target | None = None
    marketplace_listings: _Target | None = None
    credit_logs: _Target | None = None


class UserColumns(_Strict):
    """Columns of the users that have another name, or lie in another table."""

    email: _Path | None = None
    role: _Path | None = None


class SubscriptionColumns(_Strict):
    """The same of the subscriptions."""

    gpt_id: _Path | None = None
    status: _Path | None = None
    preferences: _Path | None = None
    version: _Path | None = None
    is_active: _Path | None = None


class Columns(_Strict):
    """Columns by source. Those of the projects are written: they have the names of the rules."""

    users: UserColumns = UserColumns()
    subscriptions: SubscriptionColumns = SubscriptionColumns()


class Ids(_Strict):
    """Where integer ids begin: beyond every sequence of the tables that get them."""

    first: int | None = Field(None, ge=1, le=2**62)


class Mapping(_Strict):
    """A whole mapping file."""

    active_gpt: Literal["gpt", "subscription"] = "gpt"
    tables: Tables = Tables()
    columns: Columns = Columns()
    defaults: dict[str, _Constant] = Field(default_factory=dict)
    ids: Ids = Ids()


def known() -> dict[str, str]:
    """The shipped mappings: their text by name."""
    folder = resources.files(__package__) / "known"
    return {
        each.name.removesuffix(SUFFIX): each.read_text(encoding="utf-8")
        for each in sorted(folder.iterdir(), key=lambda each: each.name)
        if each.name.endswith(SUFFIX)
    }


def load(named: str) -> Shape:
    """The shape of a mapping file, or of a shipped mapping by its name.

    Raises OtherTables that names every mistake: this process knows no tables.
    """
    if not named:
        return Shape(mappable=mappable())
    path = Path(named)
    shipped = known()
    if not path.exists() and named in shipped:
        return parse(f"mapping {named}", shipped[named])
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        reason = getattr(failure, "strerror", None) or "it is no text"
        raise OtherTables(
            f"MIGRATION_MAPPING: {named} cannot be read: {reason}",
            hint=f"Name a TOML file, or one of the shipped mappings: {', '.join(shipped)}.",
        ) from None
    return parse(path.name, text)


def mappable() -> dict[str, tuple[str, ...]]:
    """The columns that a mapping may name, by source."""
    models: dict[str, type[BaseModel]] = {
        "users": UserColumns,
        "subscriptions": SubscriptionColumns,
    }
    return {plural: tuple(model.model_fields) for plural, model in models.items()}


@functools.lru_cache(maxsize=8)
def parse(name: str, text: str) -> Shape:
    """The shape that the text of a mapping says; `name` stands for it in messages."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as failure:
        raise _refused([f"{name} is no TOML: {failure}"]) from None
    at = lines.of(text)
    try:
        found = Mapping(**content)
    except ValidationError as invalid:
        raise _refused(
            [f"{_where(name, at, _key(error))}: {_reason(error)}" for error in invalid.errors()]
        ) from None
    wrong = [
        f"{_where(name, at, ('defaults', key))}: {reason}"
        for key in found.defaults
        if (reason := _wrong_default(key))
    ]
    if wrong:
        raise _refused(wrong)
    named_lines = {key: f"{name}, line {line}" for key, line in at.items()}
    return _to_shape(found, named_lines)


def _to_shape(found: Mapping, at: dict[tuple[str, ...], str]) -> Shape:
    names = found.tables.model_dump(exclude_none=True)
    columns: dict[str, dict[str, shape.Path]] = {}
    for plural, paths in found.columns.model_dump(exclude_none=True).items():
        columns[plural] = {name: _parse(path) or shape.Path(path) for name, path in paths.items()}
    defaults = {}
    for key, value in found.defaults.items():
        table, _, column = key.partition(".")
        defaults[table, column] = value
    return Shape(
        kept=found.model_dump(mode="json", exclude_defaults=True, exclude_none=True),
        sources={name: table for name, table in names.items() if name not in TABLES},
        targets={name: table for name, table in names.items() if name in TABLES},
        columns=columns,
        defaults=defaults,
        first_id=found.ids.first,
        options={"active_gpt": found.active_gpt},
        mappable=mappable(),
        lines=at,
    )


def _wrong_default(key: str) -> str:
    table, _, column = key.partition(".")
    if not column or "." in column:
        return 'must be "table.column" in quotes, such as "organizations.status"'
    if table not in TABLES:
        near = difflib.get_close_matches(table, TABLES, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{table} is no target table: one of {', '.join(TABLES)}{meant}"
    return "" if _COLUMN.fullmatch(column) else f"{column} is no name of a column"


def _key(error: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in error["loc"])


def _where(name: str, at: dict[tuple[str, ...], int], key: tuple[str, ...]) -> str:
    there = key
    while there:
        # Of a table that is not named itself, the first of its keys.
        if found := [line for each, line in at.items() if each[: len(there)] == there]:
            return f"{name}, line {found[0]}, {'.'.join(key)}"
        there = there[:-1]
    return f"{name}, {'.'.join(key)}"


def _reason(error: ErrorDetails) -> str:
    """What would be right, in words; the value itself may be anything and is not quoted."""
    kind, key = error["type"], _key(error)
    if kind == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return _unknown(key)
    if kind == "literal_error":
        return f"must be {error['ctx']['expected']}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"must be a table of its own: [{'.'.join(key)}]"
    if kind == "string_type":
        return 'must be a text in quotes: "name"'
    if kind in ("int_type", "int_from_float"):
        return "must be a whole number without quotes: 1_000_000_000"
    if kind in ("greater_than_equal", "less_than_equal"):
        return "must be from 1 to 4611686018427387904"
    return error["msg"]


def _unknown(key: tuple[str, ...]) -> str:
    """What an unknown key may have meant: another one here, or the same one elsewhere."""
    *above, last = key
    if above[:2] == ["columns", "projects"] or key == ("columns", "projects"):
        return "the columns of projects are written, so they must have the names of the rules"
    if last == "active_gpt":
        return "must stand before the first [table] of the file"
    model: Any = Mapping
    for part in above:
        model = type(model.model_fields[part].default)
    allowed = list(model.model_fields)
    near = difflib.get_close_matches(last, allowed, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"is not known here: one of {', '.join(allowed)}{meant}"


def _refused(wrong: list[str]) -> OtherTables:
    # A worker whose mapping says nothing that holds leaves a run to others, and fails no batch.
    return OtherTables(
        "\n".join(f"MIGRATION_MAPPING: {each}" for each in wrong),
        hint="Correct the file; docs/mapping.md has all that it may say. Nothing was changed.",
    )
