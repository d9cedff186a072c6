"""Whether each type with a grant of its own is one that a user can have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal

from sqlalchemy import Connection

from models.dashboard.schema import ENUMS, SCHEMA
from models.engine.schema.target import Target, enums_there
from models.engine.source import Sources
from models.errors import Misconfigured
from models.preflight.obstacles import TARGET, Obstacle

SETTING = "MIGRATION_CREDIT_GRANTS"


def find(
    connection: Connection, sources: Sources, target: Target, grants: Mapping[str, Decimal]
) -> Iterator[Obstacle]:
    """Types that are mistyped: their users would get the amount of any other type."""
    labels = _labels(connection, sources, target)
    # An adopted type may lack some of ours, which the default grants name: no mistake of anybody.
    known = {"*", *labels, *ENUMS["user_type"]}
    unknown = [name for name in grants if name not in known]
    if labels and unknown:
        named = ", ".join(_with_meant(name, labels) for name in unknown)
        yield Obstacle(
            TARGET,
            f"{SETTING} names types that no user can have: {named}",
            f"Correct it: a user's type is one of {', '.join(labels)}; * is any other.",
            kind=Misconfigured,
        )


def _labels(connection: Connection, sources: Sources, target: Target) -> Sequence[str]:
    """The types that the column can hold, as it is or will be; none where it holds any text."""
    column = sources.users.columns.get("user_type")
    if column is not None:
        return column.enum or ()
    return enums_there(connection, SCHEMA, target.schema).get("user_type", ENUMS["user_type"])


def _with_meant(name: str, labels: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), labels, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name
