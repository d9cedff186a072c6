"""What PostgreSQL's errors mean, in words of our own: its own texts may quote rows or secrets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

FULL = "too many connections"
# The first one that matches is said. libpq gives no code for a connection that fails.
_CONNECTION = (
    (r"password authentication failed", "password authentication failed"),
    (r"no password supplied|fe_sendauth", "the server asks for a password, and none is set"),
    (r"could not translate host name|Name or service not known", "the host's name is unknown"),
    (r"Connection refused", "connection refused: no server listens there"),
    (r"No such file or directory", "no server listens on that socket"),
    (r"timeout expired|timed out", "no answer in time"),
    (r"no pg_hba\.conf entry.*no encryption", "no pg_hba.conf entry admits this user from here"
     " without encryption"),
    (r"no pg_hba\.conf entry", "no pg_hba.conf entry admits this user from here"),
    (r"authentication failed", "authentication failed"),
    (r"database .* does not exist|no such database", "the database does not exist"),
    (r"role .* does not exist", "the role does not exist"),
    (r"not permitted to log in", "the role may not log in"),
    (r"permission denied for database", "the role may not connect to the database"),
    (r"too many|remaining connection slots|no more connections", FULL),
    (r"starting up|shutting down|recovery mode|not yet accepting", "the server is not ready"),
    (r"session is (not )?read-only|hot standby|server is in", "no server has the role that"
     " target_session_attrs asks for"),
    (r"does not support SSL|SSL off|SSL is required|SSL/TLS required", "the server and sslmode do"
     " not agree on TLS"),
    (r"root certificate file", "the file of sslrootcert cannot be read"),
    (r"certificate file|private key file", "the file of sslcert or sslkey cannot be read"),
    (r"does not match host name", "its certificate is for another host name"),
    (r"certificate", "its certificate cannot be verified"),
    (r"SSL|GSSAPI", "the encrypted connection fails"),
    (r"server closed|terminating connection|reset by peer", "the server closed the connection"),
    (r"unreachable|No route to host", "the network does not reach the host"),
    (r"Permission denied", "the socket or a file may not be read"),
)  # fmt: skip
# Errors of the statement itself: their texts name objects, as long as no function speaks.
_OBJECTS = (
    "0A000", "2BP01", "3D000", "3F000", "428C9", "42501", "42701", "42703", "42704", "42710",
    "42723", "42809", "42830", "42883", "42P01", "42P06", "42P07", "42P16", "55000",
)  # fmt: skip
_FUNCTION = re.compile(
    r'^PL/\w+[^\n("]*?((?:"[^"\n]*"|[\w$]+)(?:\.(?:"[^"\n]*"|[\w$]+))*)(?:\(|$)', re.MULTILINE
)
_DDL = re.compile(r"(?:^|;)\s*(?:CREATE|ALTER|DROP|COMMENT|REINDEX|GRANT|REVOKE)\s", re.IGNORECASE)
_HINTS = {
    "25006": "The server is a replica, or default_transaction_read_only is on for the role, the"
    " database or the server: connect to the primary, or set it to off.",
    "53300": "Free connections, or raise max_connections or the role's CONNECTION LIMIT.",
    "55P03": "Look for long transactions in pg_stat_activity, and for forgotten prepared ones in"
    " pg_prepared_xacts.",
    "53100": "Make room on the disk of the database.",
}
_WORDS = {"25006": "The database accepts no writes: ", "53100": "The disk is full: "}


@dataclass(frozen=True)
class Refusal:
    """An error of PostgreSQL without its text: names of objects are no data."""

    name: str
    sqlstate: str
    constraint: str = ""
    table: str = ""
    column: str = ""
    function: str = ""
    text: str = ""

    @property
    def words(self) -> str:
        """`UniqueViolation (23505), constraint c on s.t`, with what there is of it."""
        said = f"{_WORDS.get(self.sqlstate, '')}{self.name} ({self.sqlstate or 'connection lost'})"
        if self.constraint:
            said += f", constraint {self.constraint}"
        if self.column:
            said += f", column {self.column}"
        if self.table:
            said += f" on {self.table}" if self.constraint else f" of {self.table}"
        return said + (f", in function {self.function}" if self.function else "")

    @property
    def hint(self) -> str:
        """What to do about it, where the code alone tells."""
        return _HINTS.get(self.sqlstate, "")


def of(original: Any) -> Refusal:
    """What may be shown of a driver's error."""
    code = str(getattr(original, "pgcode", None) or "")
    diagnostics = getattr(original, "diag", None)

    def get(name: str) -> str:
        return str(getattr(diagnostics, name, None) or "")

    context = get("context")
    found = _FUNCTION.search(context)
    name = type(original).__name__
    if found or "PL/" in context:
        # RAISE may put data into any field of the error.
        return Refusal(name, code, function=found[1] if found else "a procedural language")
    schema, table = get("schema_name"), get("table_name")
    return Refusal(
        name,
        code,
        constraint=get("constraint_name") or get("datatype_name"),
        table=f"{schema}.{table}" if schema and table else table,
        column=get("column_name"),
        text=get("message_primary") if code in _OBJECTS and not context else "",
    )


def of_connecting(original: object) -> str:
    """Why a connection fails; never the driver's text, which quotes what it was given."""
    text = str(original)
    for pattern, words in _CONNECTION:
        if re.search(pattern, text, re.IGNORECASE):
            return words
    return f"the connection fails ({type(original).__name__})"


def is_ddl(statement: str | None) -> bool:
    """Whether a statement changes the schema: no row is in it."""
    return bool(statement and _DDL.search(statement))
