"""The command `producer`: thin; every decision is in the module that a command calls."""

from __future__ import annotations

import sys

import click
import structlog

from models.settings import unknown
from producer import logs
from producer.cli import backup, checks, repair, runs, schema, showing
from producer.cli.command import as_object, cli, console, failed_object

__all__ = ["backup", "checks", "cli", "main", "repair", "runs", "schema", "showing"]


def main() -> None:
    """The console script: wrong usage gives one JSON object too, where --json asks for it."""
    # Whatever the reconciler logs while a command runs: stdout is for the one object.
    structlog.configure(
        processors=[logs.render, *structlog.get_config()["processors"]],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logs.install()
    for line in unknown():
        console.print(f"Warning: {line}", markup=False)
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as wrong:
        wrong.show()
        if "--json" in sys.argv:
            click.echo(
                as_object(failed_object("usage", wrong.format_message(), "See: producer --help"))
            )
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        console.print("Stopped. An open run continues without this command: producer status")
        sys.exit(130)
