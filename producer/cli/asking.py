"""What commands share: the engine, a run and its end, a question."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from models.errors import MigrationError, Misconfigured
from producer.cli.command import console, results, said_databases

if TYPE_CHECKING:
    from models.reports.run import RunReport


class Declined(MigrationError):
    """A question was answered with no."""

    kind = "declined"


RUN = click.argument("run", required=False, metavar="[RUN]")


WAIT = click.option("--wait", is_flag=True, help="Wait for the end, with progress.")


def open_engine() -> Any:
    """The engine, where the database answers."""
    from models.postgres import database
    from producer import connect

    engine = connect.engine()
    database.check_reachable(engine)
    return engine


def open_ledger() -> Any:
    """The engine, where the ledger, if there is one, is of this version of the product."""
    from models.ledger import revision
    from models.postgres import database

    engine = open_engine()
    with database.transaction(engine) as connection:
        revision.require(connection)
    return engine


def open_ready() -> Any:
    """The engine, where database, ledger and Redis can carry a run."""
    from producer.broker import readiness

    engine = open_ledger()
    readiness.require()
    return engine


def end(run_id: str, wait: bool) -> Any:
    """What the command ends with: the run as it is, or as it ends where that is waited for."""
    from producer.reports import status as report
    from producer.reports import terminal as output

    if wait:
        return wait_for(run_id)
    found = report.read(open_engine(), run_id)
    output.summary(results, found)
    return found


def wait_for(run_id: str) -> tuple[RunReport, int]:
    """Wait for the end of the run, with progress; its report and exit status.

    The run was there a moment ago: from now on a server that is away is waited for.
    """
    from producer import connect
    from producer.reports import terminal as output
    from producer.runs import wait as waiting

    found = waiting.until_over(connect.engine(), connect.settings().base, run_id, console)
    output.summary(results, found)
    return found, found.exit_status


def require_terminal(question: str, yes: bool) -> None:
    """Raise Misconfigured where there is no terminal to ask the question on."""
    if not yes and not sys.stdin.isatty():
        raise Misconfigured(f"{question} There is no terminal to ask.", hint="Add --yes.")


def confirm(question: str, yes: bool) -> None:
    """Ask, and name the database; raises Declined after a no."""
    if yes:
        return
    question = f"Database {said_databases[-1]}: {question[0].lower()}{question[1:]}"
    require_terminal(question, yes)
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        # Ctrl-C, or the end of the input.
        console.print()
        agreed = False
    if not agreed:
        raise Declined("Nothing was changed.")
