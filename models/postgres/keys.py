"""Keys of text, uuid and integer types: how they are cast, compared and read from text."""

from __future__ import annotations

from models.postgres.catalog import INTEGER_TYPES, TEXT_TYPES

KEY_TYPES = INTEGER_TYPES | TEXT_TYPES | {"uuid"}


def key_family(base_type: str) -> str:
    """Key types that compare with each other: `integer`, `text` or `uuid`."""
    if base_type in INTEGER_TYPES:
        return "integer"
    return "text" if base_type in TEXT_TYPES else base_type


def key_cast(base_type: str) -> str:
    """The type to cast a key's text to; a plain `character` would cut it to one letter."""
    return "bpchar" if base_type == "character" else base_type


def list_cast(base_type: str) -> str:
    """The type to cast listed keys to: a child's column may be of a larger type than the key."""
    return "bigint" if base_type in INTEGER_TYPES else key_cast(base_type)


def key_from_text(text: str, base_type: str) -> str:
    """SQL for the key that a text expression names; null where it names none."""
    if key_family(base_type) == "text":
        return text
    if base_type == "uuid":
        shape = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
        return f"(CASE WHEN {text} ~ '^{shape}$' THEN {text}::uuid END)"
    # Nineteen digits may be more than a bigint holds.
    largest = "9223372036854775807"
    return (
        f"(CASE WHEN {text} ~ '^-?[0-9]{{1,19}}$' THEN CASE WHEN abs({text}::numeric) <= {largest}"
        f" THEN {text}::bigint END END)"
    )
