"""The one assertion that every repetition ends in."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

import sqlalchemy as sa
from sqlalchemy import text

from models.ledger.tables import batches, quarantine, runs
from producer.reports import status
from tests import oracle
from tests.faults.site import Site
from tests.faults.standing import standing, waiting
from tests.faults.world import NotInjected

LIMIT_SECONDS = 90.0
"""A run that is still open so long after the fault is stuck."""
DRAIN_SECONDS = 30.0

_ENTITIES = {"users": "user", "subscriptions": "subscription", "projects": "project"}
_UNBALANCED = """
SELECT u.id FROM users u LEFT JOIN credit_logs c ON c.user_id = u.id GROUP BY u.id
HAVING coalesce(u.credits_balance, 0) <> coalesce(sum(
  CASE c.operation WHEN 'add' THEN c.amount WHEN 'deduct' THEN -c.amount END), 0)
"""


@dataclass
class Verdict:
    """How a repetition ended; `findings` says in words what the three counts stand for.

    `restarts` counts workers that were gone and started again, killed or not.
    """

    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    seconds: float | None = None
    restarts: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        return not self.findings

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judge(site: Site, over: float | None) -> Verdict:
    """Wait for the run's end, and hold everything that it left against the oracle.

    `over` is when the fault was over, None for one that lasts as long as the run. Every legacy row
    is accounted for exactly once, every balance equals its log to the cent, the report's figures
    are those of the tables, no batch is open, no message is left, and the run ended as an
    undisturbed one does.
    """
    verdict = Verdict()
    _ends(site, verdict, over)
    if not verdict.stuck:
        for what, holds in site.proofs:
            if not site.comes(holds, 5):
                raise NotInjected(f"at the end it did not hold that {what}")
    _compare(site, verdict)
    verdict.restarts = site.restarts
    return verdict


def _ends(site: Site, verdict: Verdict, over: float | None) -> None:
    if not site.comes(site.is_over, LIMIT_SECONDS):
        verdict.stuck = 1
        verdict.findings.append(f"stuck: {standing(site)}")
        site.dump()
        return
    if not site.comes(lambda: not waiting(site), DRAIN_SECONDS):
        verdict.stuck = 1
        verdict.findings.append(f"stuck: {waiting(site)} messages that no worker takes")
        site.dump()
    with site.engine.connect() as connection:
        found = connection.execute(
            sa.select(runs.c.state, runs.c.error, runs.c.started_at, runs.c.finished_at).order_by(
                runs.c.id
            )
        ).all()
        left = connection.execute(
            sa.select(batches.c.step, batches.c.state, batches.c.error).where(
                batches.c.state.not_in(("done", "split"))
            )
        ).all()
    *canaries, run = found
    wanted = "completed"
    if any(site.expectation.quarantined.values()):
        wanted = "completed_with_quarantine"
    are_right = all(canary.state in ("completed", wanted) for canary in canaries)
    if len(found) != site.runs or run.state != wanted or not are_right:
        verdict.stuck = 1
        verdict.findings.append(f"ended as {[(row.state, row.error) for row in found]}")
    if left:
        verdict.stuck = 1
        verdict.findings.append(f"left open: {[tuple(row) for row in left]}")
    since = run.started_at.timestamp() if over is None else over
    verdict.seconds = max(0.0, round(run.finished_at.timestamp() - since, 2))


def _compare(site: Site, verdict: Verdict) -> None:
    before, expectation = site.before, site.expectation
    with site.engine.connect() as connection:
        differences = oracle.compare(connection, before, expectation)
        in_quarantine = {
            (row.entity, row.legacy_key)
            for row in connection.execute(
                sa.select(quarantine.c.entity, quarantine.c.legacy_key).where(
                    quarantine.c.state == "open"
                )
            )
        }
        unbalanced = list(connection.scalars(text(_UNBALANCED)))
    wanted = {
        (_ENTITIES[name], key) for name, rows in expectation.quarantined.items() for key in rows
    }
    differences += [f"quarantine: missing {row}" for row in sorted(wanted - in_quarantine)]
    differences += [f"quarantine: not expected {row}" for row in sorted(in_quarantine - wanted)]
    differences += [f"balance: missing in the log of user {key}" for key in unbalanced]
    differences += _reported(site, oracle.counts(before, expectation))
    for difference in differences:
        if is_surplus(difference):
            verdict.doubled += 1
        else:
            verdict.lost += 1
    verdict.findings += differences


def _reported(site: Site, right: dict[str, Any]) -> list[str]:
    """Where the reports' figures are not those that the oracle counts.

    The last run judges all legacy rows; what it wrote comes on top of what a canary wrote.
    """
    with site.engine.connect() as connection:
        ids = list(connection.scalars(sa.select(runs.c.id).order_by(runs.c.id)))
    reports = [status.read(site.engine, run_id).model_dump(mode="json") for run_id in ids]
    last = reports[-1]
    found = {name: last[name] for name in _ENTITIES}
    found["rows"] = {
        table: sum(report["rows"][table] for report in reports) for table in last["rows"]
    }
    differences = [
        f"reported {name} {figure}: {value}, expected {right[name][figure]}"
        for name, figures in found.items()
        for figure, value in figures.items()
        if value != right[name][figure]
    ]
    granted = str(sum(Decimal(report["credits_granted"]) for report in reports))
    if granted != right["credits_granted"]:
        differences.append(f"reported credits: {granted}, expected {right['credits_granted']}")
    return differences


def is_surplus(difference: str) -> bool:
    """Whether the oracle's words mean a row or an amount too many; all the rest is missing."""
    if ": not expected " in difference or difference.startswith("suites that user"):
        return True
    numbers = re.search(r": (\S+), expected (\S+)$", difference)
    try:
        return bool(numbers) and Decimal(numbers[1]) > Decimal(numbers[2])  # type: ignore[index]
    except InvalidOperation:
        return False
