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

Each row is a fault that is injected several times, each time at a different moment of the run.
`make faults` writes this page row by row; the code is in [tests/faults](../tests/faults).

A run migrates {USERS} generated users with their subscriptions and projects, some of them bad, in
batches of {BATCH_SIZE}, with one worker of {CHILDREN} child processes on real servers. The workers
run the product's own code. A process that dies is started again at once. No command is repeated.

Each repetition ends with the same assertions ([verdict.py](../tests/faults/verdict.py)):

- Each legacy row is accounted for exactly once, according to an independent implementation of the
  rules ([tests/oracle](../tests/oracle)). Every balance equals its log to the cent.
- The report's figures are those of the tables. No batch is open, and no message is left.
- The run ends within {LIMIT_SECONDS:.0f} seconds of the fault, in the state in which a run without
  a fault ends.

The columns:

- *lost*: rows or amounts that are missing or wrong. *doubled*: those that exist too often.
- *stuck*: runs that were open {LIMIT_SECONDS:.0f} s after the fault, or ended in another state.
- *seconds to recover* (median / maximum): from the end of the fault to the end of the run, the rest
  of its normal work included. A kill ends when it strikes, an outage when the server is back or the
  lock is gone. A fault that lasts as long as the run ends when the run begins. The first row is a
  whole run, with the start of its workers, for comparison. Several repetitions share the machine.
"""
_ENDED = (
    "Workers that ended by themselves and had to be started again, with the number of repetitions: "
)


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
    lines += ["", "## How each fault is injected", ""]
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
