"""Commands that look before, during and after a run, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from producer.cli.asking import RUN, open_engine, open_ledger
from producer.cli.command import cli, command, console, results

NO_ENDPOINTS = "endpoints; set MIGRATION_API_URLS to the dashboard's"

if TYPE_CHECKING:
    from models.reports.checks import Check, Checks, Speed, Speeds


@command(cli, "check", blank="checks:Checks")
def check() -> Any:
    """Check everything that a run needs, and try it on a few rows, rolled back."""
    from models.reports.checks import Checks
    from producer import connect
    from producer.checks import check as checks
    from producer.reports import terminal as output

    found = checks.examine(connect.engine(), connect.settings().base)
    output.checks(results, found)
    return verdict_of(Checks(checks=found), found)


@command(cli, "plan", blank="plan:Plan")
@click.option(
    "--users", type=click.IntRange(1), help="For so many users; by default, as many as there are."
)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="With so many workers."
)
def plan(users: int | None, workers: int) -> Any:
    """Estimate time, load and size of a run, measured on a sample and rolled back."""
    from producer import connect
    from producer.checks import plan as planning
    from producer.reports import terminal as output

    found = planning.make(open_engine(), connect.settings().base, users, workers)
    output.plan(results, found)
    return found


@command(cli, "doctor", blank="diagnosis:Diagnosis")
@RUN
def doctor(run: str | None) -> Any:
    """Say what a run waits for; fix lost messages, expired leases and stuck stages."""
    from producer import connect
    from producer.doctor import examine as diagnosis
    from producer.reports import terminal as output

    found = diagnosis.examine(open_ledger(), connect.settings().base, run)
    output.diagnosis(results, found)
    return found


@command(cli, "health", blank="checks:Checks")
def health() -> Any:
    """Check that everything answers, and warn of rows that break a rule.

    Database, Redis, workers, queues, Flower and your endpoints.
    """
    from models.reports.checks import Checks
    from producer import connect
    from producer.checks import health as checking
    from producer.reports import terminal as output

    found = checking.examine(connect.engine(), connect.settings().base)
    output.checks(results, found)
    return verdict_of(Checks(checks=found), found)


@command(cli, "performance", blank="checks:Speeds")
def performance() -> Any:
    """Measure the response times of your endpoints and of the application's queries."""
    from models.reports.checks import Speeds
    from producer import connect
    from producer.checks import performance as measuring
    from producer.reports import terminal as output

    found = measuring.measure(open_ledger(), connect.settings().base)
    output.speeds(results, found)
    left = [] if connect.settings().base.api_urls else [NO_ENDPOINTS]
    for what in left:
        results.print(f"Not checked: {what}")
    return verdict_of(Speeds(speeds=found, not_checked=left), found)


@command(cli, "case", blank={"file": None, "missing": {}})
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--log",
    "log_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="LOG",
    help="Add the end of a worker's log; may be repeated.",
)
def case(file: Path, log_files: tuple[Path, ...]) -> Any:
    """Collect status, check, settings and ledger in one archive, without secrets and row data."""
    from producer import connect
    from producer.case import make

    missing = make.make(connect.engine(), connect.settings().base, file, log_files)
    for part, why in missing.items():
        console.print(f"Without {part}: {why}", markup=False)
    results.print(f"The case is in {file}. Keys of rows are hashed.", soft_wrap=True, markup=False)
    return {"file": str(file), "missing": missing, "error": None}


def verdict_of(result: Checks | Speeds, found: Sequence[Check | Speed]) -> Any:
    """The object with its verdict, and the exit status."""
    passed = all(each.verdict != "failed" for each in found)
    return result.model_copy(update={"passed": passed}), 0 if passed else 5
