"""A hash of what the rules read in a legacy row, noted when the row is set aside.

Another hash later says that the row, or the owner that it was judged by, has changed since.
"""

from __future__ import annotations

from models.dashboard.legacy import Legacy
from models.postgres.catalog import quote
from models.postgres.keys import key_cast, key_family, key_from_text

_COLUMNS = {
    "user": ("email",),
    "subscription": ("user_id", "gpt_id", "preferences"),
    "project": ("user_id",),
}
ENTITIES = tuple(_COLUMNS)


def hash_of(legacy: Legacy, entity: str, alias: str) -> str:
    """SQL for the hash of the legacy row under this alias, of its text byte for byte."""
    table = getattr(legacy, f"{entity}s")
    texts = [f"{alias}.{quote(c)}::text" for c in _COLUMNS[entity] if c in table.columns]
    if entity != "user":
        # Null without an owner: whether there is one is what the rules ask first.
        texts.append(
            f"(SELECT concat(o.email::text) FROM {legacy.users.sql} o"
            f" WHERE o.id = {alias}.user_id OFFSET 0)"
        )
    seed = "0"
    for text in texts:
        seed = f"hashtextextended(coalesce('=' || {text}, '') COLLATE \"C\", {seed})"
    return seed


def hash_by_key(legacy: Legacy, entity: str, key: str) -> str:
    """SQL for the hash of the row with this key (an SQL expression); null where there is none."""
    table = getattr(legacy, f"{entity}s")
    return f"(SELECT {hash_of(legacy, entity, 'x')} FROM {table.sql} x WHERE x.id = {key})"


def key_of(legacy: Legacy, entity: str, text: str) -> str:
    """SQL for the key of an entity's table that a text names; null where it names none."""
    base = getattr(legacy, f"{entity}s").columns["id"].base
    if key_family(base) == "text":
        return f"CAST({text} AS {key_cast(base)})"
    return key_from_text(text, base)
