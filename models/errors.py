"""One tree of errors. The branch says what to do next, and every error can say how to fix it."""

from __future__ import annotations

from typing import ClassVar


class MigrationError(Exception):
    """Root of all errors that a user may see.

    `kind` is the stable word of the JSON output, `hint` says how to fix it, `exit_status` is
    what the command ends with.
    """

    kind: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Misconfigured(MigrationError):
    """Stop: a setting, a server or a privilege is wrong. Nothing was changed."""

    kind = "misconfigured"
    exit_status = 2


class OtherTables(Misconfigured):
    """This process sees other tables than the run migrates: leave the run to others."""


class Unreachable(MigrationError):
    """A server does not answer or refuses the login. Nothing was changed."""

    kind = "unreachable"


class Incompatible(MigrationError):
    """A table is there but is not what the migration can work with. Nothing was changed."""

    kind = "incompatible"


class NotAllowed(MigrationError):
    """The database role lacks a privilege, or the run's state forbids the action."""

    kind = "not_allowed"


class UnknownRun(MigrationError):
    """No run of that id, or no run at all."""

    kind = "unknown_run"
    exit_status = 2


class RunLost(MigrationError):
    """A run that was there is gone: a failover to a standby that had not received it."""

    kind = "run_lost"


class Transient(MigrationError):
    """Retry with back-off: deadlock, serialization, lost connection, lock timeout."""

    kind = "transient"


class TooBig(MigrationError):
    """Split and try the parts: statement timeout, out of memory, out of disk for a sort."""

    kind = "too_big"


class BadRow(MigrationError):
    """Bisect, then quarantine: some row of the batch cannot be taken.

    Carries the SQLSTATE, and the names of constraint, table and function, where there are any.
    """

    kind = "bad_row"

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str,
        constraint: str = "",
        table: str = "",
        function: str = "",
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.constraint = constraint
        self.table = table
        self.function = function


class Stopped(MigrationError):
    """The worker is told to stop: hand the batch back, and do not count that against it."""

    kind = "stopped"


class LeaseLost(MigrationError):
    """The batch was claimed by somebody else meanwhile: roll back and forget it."""

    kind = "lease_lost"
