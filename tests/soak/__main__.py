"""Long runs under harm: `python -m tests.soak NAME [--users N | --runs N]`; JSON on stdout."""

from __future__ import annotations

import json
import platform

import click

from tests.soak import away, chaos, eta, keep, live, poison, shake, undo, watched
from tests.soak.site import open_site

RUNS = {
    "chaos": (chaos.run, 100_000),
    "poison": (poison.run, 100_000),
    "live": (live.run, 50_000),
    "undo": (undo.run, 100_000),
    "keep": (keep.run, 100_000),
    "eta": (eta.run, 20_000),
    "watched": (watched.run, 100_000),
    "away": (away.run, 4_000),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*RUNS, "shake"]))
@click.option("--users", type=click.IntRange(1000), help="Instead of the run's own number.")
@click.option("--runs", type=click.IntRange(1), default=shake.RUNS, help="Of shake.")
@click.option("--first", type=click.IntRange(0), default=0, help="The first seed of shake.")
def main(names: tuple[str, ...], users: int | None, runs: int, first: int) -> None:
    """Run them one after the other, all of them unless some are named."""
    for name in names or (*RUNS, "shake"):
        with open_site() as site:
            if name == "shake":
                found = shake.run(site, runs, first)
            else:
                run, usual = RUNS[name]
                found = run(site, users or usual)
        click.echo(json.dumps({"run": name, "python": platform.python_version()} | found, indent=2))


if __name__ == "__main__":
    main()
