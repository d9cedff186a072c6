"""The command `producer`: thin; every decision is in the module that a command calls."""

from __future__ import annotations

import gc
import sys

import click

from producer.cli import backup, checks, new, repair, runs, schema, showing
from producer.cli.command import CONTINUES, Reporting, cli, console

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

            context = wrong.ctx if isinstance(wrong, click.UsageError) else None
            used = context.command if context else None
            hint = f"See: {context.command_path if context else 'producer'} --help"
            blank = used.blank if isinstance(used, Reporting) else "run:RunReport"
            said = outcome.failed_object("usage", wrong.format_message(), hint, blank)
            click.echo(outcome.as_object(said))
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        console.print(f"Stopped. {CONTINUES}")
        sys.exit(130)
