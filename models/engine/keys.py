"""Deterministic ids: a created row's id follows from the legacy row that it stands for.

An id is a kind's letter, a form's mark and the legacy key, in at most 36 characters. Kind and
form make it injective: no two kinds, and no two forms, can meet. It sorts as the legacy key does,
so that a batch in key order appends to the index instead of scattering over it.
"""

from __future__ import annotations

from models.postgres.catalog import INTEGER_TYPES

ID_LENGTH = 36
_UUID = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"


def id_of(kind: str, key: str, base_type: str) -> str:
    """SQL text for the id of the `kind` row that stands for the legacy key expression `key`.

    Forms: `-` the key itself (integers padded to 19 digits), `!` a negative integer, `_` a uuid
    without its hyphens, `~` the first 10 characters and 96 bits of the SHA-256 of a longer key.
    """
    if base_type in INTEGER_TYPES:
        return (
            f"CASE WHEN {key} >= 0 THEN '{kind}-' || lpad({key}::text, 19, '0')"
            f" ELSE '{kind}!' || lpad(({key}::numeric + 9223372036854775808)::text, 19, '0') END"
        )
    if base_type == "uuid":
        return f"'{kind}_' || replace({key}::text, '-', '')"
    return (
        f"CASE WHEN length({key}::text) <= 34 THEN '{kind}-' || {key}::text"
        f" WHEN {key}::text ~ '{_UUID}' THEN '{kind}_' || replace({key}::text, '-', '')"
        f" ELSE '{kind}~' || left({key}::text, 10)"
        f" || left(encode(sha256(convert_to({key}::text, 'UTF8')), 'hex'), 24) END"
    )


def has_kind(kind: str, column: str) -> str:
    """SQL condition: `column` holds an id of this kind, whichever its form."""
    return f"left({column}, 2) IN ('{kind}-', '{kind}!', '{kind}_', '{kind}~')"
