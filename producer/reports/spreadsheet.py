"""The cells of a CSV that a spreadsheet opens: text, never a formula."""

from __future__ import annotations

from typing import Any

_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a single quote before each text that a spreadsheet would take for a formula.

    The rule is OWASP's: https://owasp.org/www-community/attacks/CSV_Injection
    """
    return {
        name: f"'{value}" if isinstance(value, str) and value.startswith(_BEGINS_FORMULA) else value
        for name, value in row.items()
    }
