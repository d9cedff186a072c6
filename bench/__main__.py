"""`make bench`: all contestants on copies of one generated school, interleaved, as medians."""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import click
import psutil
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from bench import contestants
from producer.demo import sample
from tests.soak.site import Site, open_site

RESULTS = Path(__file__).parent / "results"
SLOW_USERS = 1_000


@click.command()
@click.option("--users", default="10000,100000", show_default=True, help="Sizes, comma-separated.")
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True)
@click.option("--only", default="", help="Contestants, separated by semicolons.")
@click.option("--slow-users", type=click.IntRange(10), default=SLOW_USERS, show_default=True)
@click.option("--locale", default="", help="Of the databases, as en_US.UTF-8 or icu:en-US.")
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(
    users: str, repetitions: int, only: str, slow_users: int, locale: str, output: Path
) -> None:
    """Run the contestants in turn; writes bench.json to the output folder."""
    names = [name.strip() for name in only.split(";") if name.strip()] or list(contestants.ALL)
    known = contestants.ALL | contestants.FIXED
    unknown = set(names) - set(known)
    if unknown:
        raise click.UsageError(
            f"No such contestant: {', '.join(unknown)}; there are {'; '.join(known)}"
        )
    sizes = [int(size) for size in users.split(",")]
    plan = [(size, [n for n in names if n not in contestants.SLOW]) for size in sizes]
    plan.append((slow_users, [n for n in names if n in contestants.SLOW]))
    found: list[dict[str, Any]] = []
    with open_site() as site:
        for size, who in plan:
            if who:
                found += _size(site, size, who, repetitions, locale)
    summary = {
        "python": platform.python_version(),
        "cores": psutil.cpu_count(),
        "repetitions": repetitions,
        "locale": locale,
        "medians": _medians(found),
        "ratios": _ratios(_medians(found), max(sizes)),
        "runs": found,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "bench.json").write_text(json.dumps(summary, indent=1) + "\n")
    click.echo(json.dumps({key: summary[key] for key in ("medians", "ratios")}, indent=1))


def _size(
    site: Site, users: int, who: list[str], repetitions: int, locale: str
) -> list[dict[str, Any]]:
    try:
        legacy = site.fresh("legacy", locale=locale)
    except DBAPIError as error:
        if not locale:
            raise
        raise click.UsageError(
            f"The server makes no database with --locale {locale!r}: {error.orig}"
            "`locale -a` lists those of the system; not every build has ICU"
        ) from None
    with legacy.begin() as connection:
        sample.load(connection, users, dirty=False)
    _alone(legacy, "VACUUM ANALYZE")
    legacy.dispose()
    found = []
    expected: dict[str, Any] | None = None
    for repetition in range(repetitions):
        # Whoever came first the last time comes last now.
        for name in who[repetition % len(who) :] + who[: repetition % len(who)]:
            engine = site.fresh("bench", template="legacy")
            _alone(engine, "CHECKPOINT")
            result = (contestants.ALL | contestants.FIXED)[name](site, engine)
            written = contestants.written(engine)
            engine.dispose()
            expected = expected or written
            if written != expected:
                raise SystemExit(f"{name} wrote {written}, and not {expected}")
            click.echo(f"{users:>9,} users  {name:<24} {result.seconds:8.2f} s", err=True)
            found.append(
                {"users": users, "name": name, "seconds": round(result.seconds, 3), **result.more}
            )
    return found


def _alone(engine: Engine, statement: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)


def _medians(found: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Users a second, by contestant and size."""
    result: dict[str, dict[int, float]] = {}
    for name in dict.fromkeys(run["name"] for run in found):
        for size in sorted({run["users"] for run in found if run["name"] == name}):
            times = [r["seconds"] for r in found if (r["name"], r["users"]) == (name, size)]
            result.setdefault(name, {})[size] = round(size / statistics.median(times), 1)
    return result


def _ratios(medians: dict[str, dict[int, float]], size: int) -> dict[str, float]:
    """The product's users a second at the largest size over those of every other contestant."""
    own = medians.get("product", {}).get(size)
    if own is None:
        return {}
    return {
        f"product / {name}": round(own / (rates.get(size) or max(rates.values())), 2)
        for name, rates in medians.items()
        if name != "product"
    }


if __name__ == "__main__":
    main()
