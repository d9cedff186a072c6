"""The dashboard's tables as ORM classes, reflected from the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, MetaData
from sqlalchemy.orm import registry


@dataclass(frozen=True)
class Classes:
    """One mapped class a table that the guide's loops read or write."""

    User: Any
    Subscription: Any
    Project: Any
    AISuite: Any
    AITool: Any
    ToolAssignment: Any
    ToolUsageLog: Any
    CreditLog: Any


_NAMES = {
    "User": "users",
    "Subscription": "gpt_subscriptions",
    "Project": "projects",
    "AISuite": "ai_suites",
    "AITool": "ai_tools",
    "ToolAssignment": "tool_assignments",
    "ToolUsageLog": "tool_usage_logs",
    "CreditLog": "credit_logs",
}


def map_tables(engine: Engine) -> Classes:
    """Map every table of the schema; relations play no part in the loops, so there are none."""
    metadata = MetaData()
    metadata.reflect(engine, only=list(_NAMES.values()))
    mappers = registry(metadata=metadata)
    classes = {}
    for name, table in _NAMES.items():
        classes[name] = type(name, (), {})
        mappers.map_imperatively(classes[name], metadata.tables[table])
    return Classes(**classes)
