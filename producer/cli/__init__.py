"""The command `producer`: thin; every decision is in the module that a command calls."""

from __future__ import annotations

import gc
import sys

import click

from producer.cli import backup, checks, new, repair, runs, schema, showing
from producer.cli.command import cli, console

__all__ = ["backup", "checks", "cli", "main", "new", "repair", "runs", "schema", "showing"]


def main() -> None:
    """The console script: wrong usage gives one JSON object too, where --json asks for it."""
    # What imports make stays: collections among it, one for 700 objects, are a tenth of the start.
    gc.set_threshold(50_000)
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as wrong:
        wrong.show()
        if "--json" in sys.argv:
            from producer.cli import outcome

            said = outcome.failed_object("usage", wrong.format_message(), "See: producer --help")
            click.echo(outcome.as_object(said))
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        console.print("Stopped. An open run continues without this command: producer status")
        sys.exit(130)
