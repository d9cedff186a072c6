"""Where the keys of a TOML file stand: the parser does not say."""

from __future__ import annotations

import re

_PART = r"(?:\"[^\"]*\"|'[^']*'|[A-Za-z0-9_-]+)"
_KEY = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\s*({_KEY})\s*\]")
_VALUE = re.compile(rf"\s*({_KEY})\s*=")


def of(text: str) -> dict[tuple[str, ...], int]:
    """The line of each key, from 1, by its whole path; a table is where it is named first."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif value := _VALUE.match(line):
            found.setdefault((*table, *_parts(value[1])), number)
    return found


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in re.findall(_PART, key))
