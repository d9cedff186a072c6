"""Loads a plain-format pg_dump file without psql: `python -m tests.dump FILE URL`."""

from __future__ import annotations

import gzip
import re
import sys
from contextlib import closing
from pathlib import Path
from typing import IO, cast

import psycopg2
from psycopg2.extensions import connection as Connection
from psycopg2.extensions import cursor as Cursor
from sqlalchemy.engine import make_url

_COPY = re.compile(rb"COPY .+ FROM stdin;\s*")
_END_OF_DATA = b"\\."


def load_dump(url: str, path: str | Path) -> None:
    """Run a dump (`.sql` or `.sql.gz`, UTF-8) in one transaction: all of it is there, or nothing.

    `url` is any `postgresql://` or `postgres://` address; a `+driver` in it is ignored.
    """
    address = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    opener = gzip.open if str(path).endswith(".gz") else open
    with (
        opener(path, "rb") as dump,
        closing(psycopg2.connect(address)) as connection,
        connection,
    ):
        connection.set_client_encoding("UTF8")
        _run(connection, cast(IO[bytes], dump))


def _run(connection: Connection, dump: IO[bytes]) -> None:
    statements = bytearray()
    with connection.cursor() as cursor:
        for line in dump:
            is_copy = _COPY.fullmatch(line) is not None
            if not (is_copy or line.startswith(b"\\")) or _inside_statement(statements):
                statements += line
            elif is_copy:
                _execute(cursor, statements)
                statements.clear()
                cursor.copy_expert(line, _CopyData(dump))
        _execute(cursor, statements)


def _execute(cursor: Cursor, statements: bytearray) -> None:
    if _last_line(statements):
        cursor.execute(bytes(statements))


def _inside_statement(statements: bytearray) -> bool:
    """Whether the next line goes on with a statement: it is neither a COPY nor one of psql's."""
    last = _last_line(statements)
    return bool(last) and not last.endswith(b";")


def _last_line(statements: bytearray) -> bytes:
    """The last line that is neither blank nor a comment, or nothing."""
    lines = (line.strip() for line in reversed(bytes(statements).splitlines()))
    return next((line for line in lines if line and not line.startswith(b"--")), b"")


class _CopyData:
    """The lines of one COPY block as a file; leaves the dump just behind its end marker."""

    def __init__(self, dump: IO[bytes]) -> None:
        self._dump = dump

    def read(self, _size: int = -1, /) -> bytes:
        return self.readline()

    def readline(self, _size: int = -1, /) -> bytes:
        line = self._dump.readline()
        return b"" if line.rstrip(b"\r\n") == _END_OF_DATA else line


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    load_dump(sys.argv[2], sys.argv[1])
