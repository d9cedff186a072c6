"""One command, its groups and its options.

Nothing here imports what only a command at work needs: `--help` and completion answer at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click
from rich.console import Console

# Progress, questions, warnings and errors; results of commands, which go to stderr with --json,
# so that stdout holds the one object.
console = Console(stderr=True, highlight=False)
results = Console(highlight=False)
# A pipe has no width: nothing is wrapped there or cut.
_PIPE_WIDTH = 100_000
CONTINUES = "An open run continues without this command: producer status"


Command = Callable[..., Any]
Blank = dict[str, Any] | str


class Reporting(click.Command):
    """A command that knows what --json prints after an error: `blank`, with the error in it."""

    def __init__(self, *args: Any, blank: Blank, **values: Any) -> None:
        super().__init__(*args, **values)
        self.blank = blank


def command(
    group: click.Group,
    name: str,
    *,
    blank: Blank = "run:RunReport",
    says_database: bool = True,
) -> Callable[[Command], Command]:
    """A command with --json and --debug, whose errors end as a message and an exit status.

    It says first which database it works on, unless it settles that itself.

    The function returns what --json prints, or a pair of that and the exit status. After an error
    that is `blank` with the error in it: values, or a class of `models.reports` as `module:name`.
    """

    def wrap(function: Command) -> Command:
        @group.command(name, cls=Reporting, blank=blank)
        @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
        @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        @functools.wraps(function)
        def run(*args: Any, as_json: bool, debug: bool, **values: Any) -> None:
            from models.settings import load
            from producer.cli import outcome

            results.stderr = as_json
            for each in (console, results):
                if not each.is_terminal:
                    each.width = _PIPE_WIDTH
            outcome.prepare()
            status = 0
            try:
                # Before any question: a wrong setting is refused by its name.
                load()
                if says_database:
                    say_database()
                result = function(*args, **values)
                if isinstance(result, tuple):
                    result, status = result
            except click.ClickException:
                raise
            except (click.Abort, KeyboardInterrupt):
                if as_json:
                    click.echo(outcome.as_object(outcome.stopped_object(blank)))
                raise
            except Exception as failure:
                result, status = outcome.failed(failure, blank, shows_places=debug)
            if as_json:
                click.echo(outcome.as_object(result))
            sys.exit(status)

        return run

    return wrap


said_databases: list[str] = []


def say_database() -> None:
    """Say on stderr which database this command works on."""
    from models.postgres import database
    from producer import connect

    said_databases.append(database.name_of(connect.engine()))
    console.print(f"Database: {said_databases[-1]}", soft_wrap=True, markup=False)


# The order of a night. Commands of no section come last.
SECTIONS = {
    "Try": ("demo", "new"),
    "Prepare": ("check", "plan", "schema", "backup"),
    "Run": ("enqueue-all", "pause", "resume", "cancel", "tune"),
    "Look": ("status", "report", "serve", "doctor", "quarantine", "differences", "health",
             "performance", "metrics", "case"),
    "Fix": ("retry", "verify", "reconcile", "repair"),
    "Undo": ("rollback", "restore", "forget"),
}  # fmt: skip


class Group(click.Group):
    """A group whose help has sections, and prints the first sentence of each command whole."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """`help NAME` is `NAME --help`."""
        if args[0] == "help":
            if not args[1:]:
                click.echo(ctx.get_help())
                ctx.exit()
            args = [*args[1:], "--help"]
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Click's own list, which it would cut at the width of the terminal."""
        rows = {
            name: found.get_short_help_str(limit=10_000)
            for name in self.list_commands(ctx)
            if (found := self.get_command(ctx, name)) and not found.hidden
        }
        for title, names in SECTIONS.items():
            if self is cli:
                with formatter.section(title):
                    formatter.write_dl([(name, rows.pop(name)) for name in names if name in rows])
        if rows:
            with formatter.section("Other commands" if self is cli else "Commands"):
                formatter.write_dl(list(rows.items()))


Group.group_class = Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dashboard-migration", message="%(version)s")
def cli() -> None:
    """Migrates a dashboard to its new schema, or whatever MIGRATION names.

    Start with `producer demo`. On your own database, set DATABASE_URL and REDIS_URL, start
    workers with `celery -A worker worker`, then run `producer enqueue-all --wait`.
    """


@cli.group()
def schema() -> None:
    """Show, add or drop the target schema and the ledger."""


@cli.group()
def repair() -> None:
    """Fix what was damaged after a migration, for one row or all."""


@cli.group()
def servers() -> None:
    """Stop the embedded PostgreSQL and Redis-compatible servers."""
