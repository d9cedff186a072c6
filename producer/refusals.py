"""What refused a row, by name: SQLSTATE, constraint, table, trigger function, and no data."""

from __future__ import annotations

import re

import psycopg2
from sqlalchemy.exc import DBAPIError

_FUNCTION = re.compile(r"^PL/pgSQL function (.+?)\(.*\) line \d+", re.MULTILINE)


def name_refusal(failure: DBAPIError) -> str:
    """The error's class and SQLSTATE, and the objects that it names; never its own text."""
    original = failure.orig
    said = f"{type(original).__name__} ({getattr(original, 'pgcode', None) or 'no code'})"
    if not isinstance(original, psycopg2.Error):
        return said
    diag = original.diag
    function = _FUNCTION.search(diag.context or "")
    named = [
        f"{kind} {name}"
        for kind, name in (
            ("constraint", diag.constraint_name),
            ("column", diag.column_name),
            ("table", diag.table_name),
            ("type", diag.datatype_name),
            ("function", function and function[1]),
        )
        if name
    ]
    return f"{said}: {', '.join(named)}" if named else said
