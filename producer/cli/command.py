"""One command: its groups and options, its errors as a message, an exit status and an object."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import click
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError
from models.messages import ErrorReport, RunReport
from models.postgres.database import classify
from models.settings import load
from producer import logs

console = Console(stderr=True, highlight=False)


Command = Callable[..., Any]


def command(
    group: click.Group,
    name: str,
    *,
    blank: dict[str, Any] | None = None,
    says_database: bool = True,
) -> Callable[[Command], Command]:
    """A command with --json and --debug, whose errors end as a message and an exit status.

    It says first which database it works on, unless it settles that itself.

    The function returns what --json prints, or a pair of that and the exit status; after an error
    that is `blank` (a run's report with nothing in it, unless said) with the error in it.
    """

    def wrap(function: Command) -> Command:
        @group.command(name)
        @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
        @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        @functools.wraps(function)
        def run(*args: Any, as_json: bool, debug: bool, **values: Any) -> None:
            status = 0
            try:
                # Before any question: a wrong setting is refused by its name.
                load()
                if says_database:
                    say_database()
                result = function(*args, **values)
                if isinstance(result, tuple):
                    result, status = result
            except (click.ClickException, click.Abort):
                raise
            except Exception as failure:
                error = _as_ours(failure)
                if debug:
                    click.echo(logs.places(failure), err=True)
                console.print(f"[red]Error:[/] {error.message}", markup=True)
                if error.hint:
                    console.print(error.hint, markup=False)
                status = error.exit_status
                result = failed_object(error.kind, error.message, error.hint, blank)
            if as_json:
                click.echo(as_object(result))
            sys.exit(status)

        return run

    return wrap


def failed_object(kind: str, message: str, hint: str, blank: dict[str, Any] | None = None) -> Any:
    """What --json prints after an error."""
    error = ErrorReport(kind=kind, message=message, hint=hint)
    if blank is None:
        return RunReport(error=error)
    return {**blank, "error": error.model_dump()}


def _as_ours(failure: Exception) -> MigrationError:
    if isinstance(failure, MigrationError):
        return failure
    if isinstance(failure, DBAPIError):
        return classify(failure)
    from producer.connect import unreachable_redis

    if isinstance(failure, RedisError | OperationalError):
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


said_databases: list[str] = []


def say_database() -> None:
    """Say on stderr which database this command works on."""
    from models.postgres import database
    from producer import connect

    said_databases.append(database.name_of(connect.engine()))
    console.print(f"Database: {said_databases[-1]}", soft_wrap=True, markup=False)


def as_object(result: Any) -> str:
    """The one object on stdout; `database` is null where it is not known."""
    values = result.model_dump(mode="json") if isinstance(result, BaseModel) else result or {}
    return json.dumps(
        {"database": said_databases[-1] if said_databases else None, **values}, default=str
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Moves a dashboard's users, subscriptions and projects to the new schema.

    Start with `producer demo`. On your own database, set DATABASE_URL and REDIS_URL, start
    workers with `celery -A worker worker`, then run `producer enqueue-all --wait`.
    """


@cli.group()
def schema() -> None:
    """The target schema and the ledger."""


@cli.group()
def repair() -> None:
    """What was damaged after a migration: one fix each, for one user or all."""


@cli.group()
def servers() -> None:
    """The embedded PostgreSQL and Redis-compatible servers."""
