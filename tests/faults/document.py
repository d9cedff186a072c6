"""docs/faults.md: the table, how each row is injected, and on what it was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import redis

from tests.faults.matrix import Row
from tests.faults.progress import Progress
from tests.faults.site import BATCH_SIZE, CHILDREN
from tests.faults.verdict import LIMIT_SECONDS, Verdict
from tests.faults.world import USERS, Lane

_HEAD = f"""# The crash matrix

Every row is a fault, brought about so many times at another moment of the run. `make faults`
writes this file, row by row; what it does stands in [tests/faults](../tests/faults).

A run migrates {USERS} generated users with their subscriptions and projects, bad rows among them,
in batches of {BATCH_SIZE}, with a worker of {CHILDREN} child processes on real servers. The workers
run the product's own code; whatever dies is started again at once, and no command is repeated.

Each repetition ends in the same assertion ([verdict.py](../tests/faults/verdict.py)): each legacy
row is accounted for exactly once, as an independent implementation of the rules says
([oracle.py](../tests/oracle.py)); every balance equals its log to the cent; the report's figures
are those of the tables; no batch is open and no message left; the run ended within
{LIMIT_SECONDS:.0f} seconds of the fault, in the state that an undisturbed one ends in.

- *lost*: rows or amounts that are missing or wrong. *doubled*: those that are there too often.
- *stuck*: runs that were open {LIMIT_SECONDS:.0f} s after the fault, or ended in another state.
- *seconds to recover*: from the moment when the fault was over (a kill: when it struck; an outage:
  when the server was back or the lock was gone; a fault that lasts as long as the run: when the run
  began) to the end of the run, the rest of its ordinary work included. Compare with the first row,
  which is a whole run, the start of its workers included. Several repetitions share the machine.
"""
_ENDED = """Workers that ended by themselves, and that whatever runs them had to start again, in so
many of the repetitions: """


def write(path: Path, rows: Sequence[Row], progress: Progress, machine: str) -> None:
    """Write the document of all rows that have a verdict."""
    seen = [(row, list(progress.verdicts(row.name).values())) for row in rows]
    done = [(row, verdicts) for row, verdicts in seen if verdicts]
    lines = [_HEAD, machine, "", "| fault | runs | lost | doubled | stuck | seconds to recover |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    lines += [_line(row, verdicts) for row, verdicts in done]
    wrong = [
        f"- {row.name}: {finding}"
        for row, verdicts in done
        for verdict in verdicts
        for finding in verdict.findings[:3]
    ]
    if wrong:
        lines += ["", "## What went wrong", "", *wrong]
    ended = [f"{row.name} ({ended} of {runs})" for row, runs, ended in _ended(done)]
    if ended:
        lines += ["", _ENDED + "; ".join(ended) + "."]
    lines += ["", "## How each fault is brought about", ""]
    lines += [f"- **{row.name}**{_mark(row)}: {row.how}" for row, _ in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _ended(done: list[tuple[Row, list[Verdict]]]) -> Iterator[tuple[Row, int, int]]:
    for row, verdicts in done:
        ended = sum(verdict.restarts > 0 for verdict in verdicts)
        if ended and not row.kills_workers:
            yield row, len(verdicts), ended


def _mark(row: Row) -> str:
    return " (a clock is moved)" if row.moves_clock else ""


def _line(row: Row, verdicts: list[Verdict]) -> str:
    figures = (
        len(verdicts),
        sum(verdict.lost for verdict in verdicts),
        sum(verdict.doubled for verdict in verdicts),
        sum(verdict.stuck for verdict in verdicts),
    )
    return f"| {row.name} | {' | '.join(map(str, figures))} | {seconds(verdicts)} |"


def seconds(verdicts: list[Verdict]) -> str:
    """Median and worst, as the table has them."""
    found = [verdict.seconds for verdict in verdicts if verdict.seconds is not None]
    return f"{median(found):.1f} / {max(found):.1f}" if found else "-"


def machine(lane: Lane, root: Path) -> str:
    """What it was measured on, without a name or a path."""
    with lane.admin() as connection:
        postgresql = connection.exec_driver_sql("SHOW server_version").scalar()
    client = redis.Redis.from_url(lane.servers.redis_url, decode_responses=True)
    info = client.info("server")
    client.close()
    valkey = info.get("valkey_version") or info.get("redis_version")
    python = ".".join(map(str, sys.version_info[:3]))
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {platform.system()},"
        f" Python {python}, PostgreSQL {postgresql}, Valkey {valkey}"
        + (f", revision {described}." if described else ".")
    )
