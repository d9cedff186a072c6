"""How a command begins and ends: logs and warnings, an error as words and a status, the object."""

from __future__ import annotations

import json
from pkgutil import resolve_name
from typing import Any

import click
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError
from models.postgres.database import classify
from models.reports.error import ErrorReport
from models.settings import unknown
from producer import logs
from producer.broker.refusals import is_of_redis
from producer.cli.command import CONTINUES, Blank, console, said_databases


def prepare() -> None:
    """No log shows a foreign text, and settings that nobody reads are named."""
    logs.install()
    for line in unknown():
        console.print(f"Warning: {line}", markup=False)


def failed(failure: Exception, blank: Blank, *, shows_places: bool) -> tuple[Any, int]:
    """Say what failed and what to do; returns the object of --json and the exit status."""
    error = _as_ours(failure)
    if shows_places:
        click.echo(logs.places(failure), err=True)
    console.print("[red]Error:[/]", end=" ")
    console.print(error.message, markup=False)
    if error.hint:
        console.print(error.hint, markup=False)
    return failed_object(error.kind, error.message, error.hint, blank), error.exit_status


def stopped_object(blank: Blank) -> Any:
    """What --json prints after Ctrl-C."""
    return failed_object("stopped", "Stopped by Ctrl-C", CONTINUES, blank)


def failed_object(kind: str, message: str, hint: str, blank: Blank) -> Any:
    """What --json prints after an error."""
    error = ErrorReport(kind=kind, message=message, hint=hint)
    values = (
        resolve_name(f"models.reports.{blank}")().model_dump() if isinstance(blank, str) else blank
    )
    return {**values, "error": error.model_dump()}


def _as_ours(failure: Exception) -> MigrationError:
    if isinstance(failure, MigrationError):
        return failure
    if isinstance(failure, DBAPIError):
        return classify(failure)
    if is_of_redis(failure):
        from producer.connect import unreachable_redis

        return unreachable_redis(failure)
    if isinstance(failure, OSError) and failure.strerror:
        what = f"{failure.filename}: " if isinstance(failure.filename, str) else ""
        return MigrationError(
            f"{what}{failure.strerror}",
            hint="Make it readable and writable, or name another place. See also MIGRATION_HOME.",
        )
    return MigrationError(
        f"This should not have happened: {type(failure).__name__}",
        hint="Run it again with --debug for the traceback. The ledger is consistent.",
    )


def as_object(result: Any) -> str:
    """The one object on stdout; `database` is null where it is not known."""
    values = result.model_dump(mode="json") if isinstance(result, BaseModel) else result or {}
    return json.dumps(
        {"database": said_databases[-1] if said_databases else None, **values}, default=str
    )
