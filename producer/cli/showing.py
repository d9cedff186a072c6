"""Commands that show a run to people and to Prometheus, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from producer.cli.asking import RUN, open_ledger
from producer.cli.command import cli, command, console, results, say_database, servers
from producer.demo.shapes import SCRIPTS


@command(cli, "report", blank={"run_id": None, "file": None})
@RUN
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it; by default below MIGRATION_HOME.",
)
def write_report(run: str | None, output: Path | None) -> Any:
    """Write a run as one HTML file: outcome, plots, quarantined rows, history."""
    from producer import connect
    from producer.reports import html
    from producer.reports import status as report

    engine = open_ledger()
    run_id = report.read(engine, run).run_id
    file = html.write(engine, connect.settings().base, run_id, output)
    results.print(f"The report of run {run_id} is in {file}", soft_wrap=True, markup=False)
    return {"run_id": run_id, "file": str(file), "error": None}


@command(cli, "serve", blank={})
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8484, show_default=True)
def serve(host: str, port: int) -> Any:
    """Serve the console for the browser: start, follow, steer and undo runs."""
    from producer import connect
    from producer.console import server as serving

    open_ledger()
    serving.run(connect.settings().base, host, port, console)
    return {"error": None}


@command(cli, "metrics", blank={"address": None})
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; 0.0.0.0 for all.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=9464, show_default=True)
def metrics(host: str, port: int) -> Any:
    """Serve the newest run's figures to Prometheus until stopped."""
    from producer import connect
    from producer.reports import metrics as ledger

    engine = connect.engine()
    console.print(f"Metrics at http://{host}:{port}/metrics")
    ledger.serve(engine, host, port)
    return {"address": f"http://{host}:{port}/metrics", "error": None}


@command(cli, "demo", says_database=False)
@click.option(
    "--users",
    type=click.IntRange(1),
    default=5_000,
    show_default=True,
    help="How many to generate.",
)
@click.option(
    "--shape",
    type=click.Choice(list(SCRIPTS)),
    help="The public dashboard's tables of that time, with their mapping.",
)
def demo(users: int, shape: str | None) -> Any:
    """Run the whole migration on embedded servers and generated data."""
    from producer.demo import demo as show

    found = show.run(users, shape, console, results)
    say_database()
    # A demonstration has dirty rows on purpose: quarantined rows are its right end.
    return found, 0 if found.exit_status == 3 else found.exit_status


@command(servers, "stop", blank={"stopped": False}, says_database=False)
def stop() -> Any:
    """Stop the embedded servers of MIGRATION_HOME; their data stay."""
    from models.settings import load
    from producer import embedded

    stopped = embedded.stop(load().home.absolute())
    results.print("Stopped." if stopped else "No embedded server was running.")
    return {"stopped": stopped, "error": None}
