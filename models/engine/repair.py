"""A fix for rows that were damaged after a migration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.engine.step import Context, Scope

# One change: table, key, column, before, after; a created row has no column.
Change = dict[str, Any]


@dataclass(frozen=True)
class Repair:
    """Fixes what is wrong in a page of the first source, and returns its changes.

    `fix(context, scope, force=…)` is safe to repeat. `left_alone` names what it leaves without
    force; `audited` is a column whose changes stand in the audit one by one.
    """

    fix: Callable[..., list[Change]]
    left_alone: Callable[[Context, Scope], list[Change]] | None = None
    audited: str = ""
