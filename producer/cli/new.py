"""A new migration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from producer.cli.command import cli, command, results

_WRITTEN: dict[str, Any] = {"folder": None, "files": []}


@command(cli, "new", blank=_WRITTEN, says_database=False)
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to write; ./NAME by default."
)
def new(name: str, folder: Path | None) -> Any:
    """Write a package with a migration of your own that runs."""
    from producer import new as package

    place = folder or Path(name)
    files = package.write(name, place)
    for path in files:
        results.print(str(path), markup=False, highlight=False, soft_wrap=True)
    results.print(
        f"Install it: pip install -e {place}\nRun its test: pytest {place}\n"
        f"Use it: export MIGRATION={name}_migration:MIGRATION, then producer check",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return {"folder": str(place), "files": [str(path) for path in files], "error": None}, 0
