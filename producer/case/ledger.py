"""The ledger's last rows for the archive: named columns only, keys and people as hashes.

What is not named here is left out, so that a new column cannot leak.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from models.ledger import tables

MOST_ROWS = 1_000
# By table: columns as they are, and columns that hold keys of rows, or who somebody is.
_COLUMNS = {
    tables.runs: (
        "id state handed_over forced forgotten_at throttled_by throttled_at grants batch_size"
        " throttle hours tables relations totals error paused_at created_at started_at finished_at",
        "paused_by",
    ),
    tables.stages: (
        "run_id name direction position state step window sums summed_to summed_until started_at"
        " finished_at",
        "last_key",
    ),
    tables.batches: (
        "id run_id stage step window rows state attempt lapses hand_backs expiries republished"
        " worker published_at lease_until started_at finished_at counts error",
        "low high key_list part_list",
    ),
    tables.quarantine: (
        "entity run_id batch_id reason attempts state first_seen_at changed_at",
        "legacy_key",
    ),
    tables.differences: (
        "id run_id stage batch_id kind entity target_table detail",
        "legacy_key",
    ),
    tables.conflicts: ("run_id kind table_name detail", "row_key holds"),
    tables.events: ("id run_id at kind state stage batch_id note", ""),
    tables.audit: ("id at action run_id", "actor origin role"),
    tables.recoveries: ("id run_id at kind batches", ""),
    tables.notices: ("event_id channel tries next_at sent_at", ""),
    tables.schema_objects: ("kind table_name name added_at", ""),
}


class Hashes:
    """The same value has the same hash in one archive, and another one in the next."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(16)

    def of(self, value: Any) -> Any:
        """The hash of a value, of each of a list's; null stays null."""
        if value is None:
            return None
        if isinstance(value, list):
            return [self.of(each) for each in value]
        return hashlib.blake2b(str(value).encode(), key=self._salt, digest_size=6).hexdigest()


def read(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """The last MOST_ROWS rows of each table of the ledger, newest first; none where it is not."""
    hashes = Hashes()
    found: dict[str, list[dict[str, Any]]] = {}
    for table, (plain, hashed) in _COLUMNS.items():
        if not connection.scalar(sa.select(sa.func.to_regclass(f"{tables.SCHEMA}.{table.name}"))):
            continue
        columns = [table.c[name] for name in (*plain.split(), *hashed.split())]
        newest = [column.desc() for column in table.primary_key.columns]
        if table is tables.quarantine:
            newest = [table.c.changed_at.desc()]
        rows = connection.execute(sa.select(*columns).order_by(*newest).limit(MOST_ROWS))
        found[table.name] = [
            {
                name: hashes.of(value) if name in hashed.split() else value
                for name, value in row._mapping.items()
            }
            for row in rows
        ]
    return found
