"""Long runs under harm: `python -m tests.soak NAME [--users N]`; JSON on stdout."""

from __future__ import annotations

import json
import platform

import click

from tests.soak import chaos, eta, keep, live, poison, undo, watched
from tests.soak.site import open_site

RUNS = {
    "chaos": (chaos.run, 100_000),
    "poison": (poison.run, 100_000),
    "live": (live.run, 50_000),
    "undo": (undo.run, 100_000),
    "keep": (keep.run, 100_000),
    "eta": (eta.run, 20_000),
    "watched": (watched.run, 100_000),
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(RUNS)))
@click.option("--users", type=click.IntRange(1000), help="Instead of the run's own number.")
def main(names: tuple[str, ...], users: int | None) -> None:
    """Run them one after the other, all of them unless some are named."""
    for name in names or RUNS:
        run, usual = RUNS[name]
        with open_site() as site:
            found = run(site, users or usual)
        click.echo(json.dumps({"run": name, "python": platform.python_version()} | found, indent=2))


if __name__ == "__main__":
    main()
