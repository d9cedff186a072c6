"""What a run will take, from a rehearsal: time, WAL, disk, connections, and what gives first.

All costs grow in line with the number of rows (docs/performance.md), so each is the rehearsal's,
a row of the first source, times those. Time is a range: W workers take at least 1/W of one
session's time, where the server has a core for each, and at most all of it, where it has one core.
"""

from __future__ import annotations

from sqlalchemy import Engine, text

from models.engine import current
from models.postgres.database import transaction
from models.postgres.rows import count_rows
from models.reports.plan import Plan, PlannedStage
from models.settings import Settings
from producer.checks import preflight, slots
from producer.checks.rehearsal import Rehearsal, rehearse
from producer.runs import partition

SAMPLE = 2_000
# Measured, beside the statements: claim, ledger, commit and message of a batch, and the ends of
# the stages together.
SECONDS_A_BATCH, SECONDS_A_RUN = 0.02, 3.0
# A message with its chord, and two windows of them.
BYTES_A_MESSAGE = 1_300


def make(engine: Engine, settings: Settings, rows: int | None, workers: int) -> Plan:
    """Rehearse, and extrapolate to `rows` of the first source (those that are there by default).

    A worker is one process. Raises what `rehearse` raises.
    """
    preflight.require(engine, settings)
    with transaction(engine, statement_timeout_ms=600_000) as connection:
        found = current.migration().read(connection, settings)
        there = count_rows(connection, found.first)
        most = int(connection.scalar(text("SHOW max_connections")) or 0)
        taken = int(connection.scalar(text("SELECT count(*) FROM pg_stat_activity")) or 0)
    wanted = rows if rows is not None else there
    rehearsal = rehearse(engine, settings, min(SAMPLE, there))
    plan = _extrapolate(rehearsal, settings, wanted, workers)
    plan.max_connections = most
    plan.gives_first = _gives_first(plan, most - taken)
    return plan


def _extrapolate(rehearsal: Rehearsal, settings: Settings, rows: int, workers: int) -> Plan:
    factor = rows / rehearsal.rows
    plan = Plan(rows=rows, workers=workers, sample=rehearsal.rows)
    stages = {name: PlannedStage(name=name) for name in current.migration().stages}
    for cost in rehearsal.costs:
        # Steps without pages work on whole tables (indexes, keys), but for those that do not.
        seconds = cost.seconds * (1 if current.migration().step(cost.step).is_constant else factor)
        batches = _batches(cost.rows * factor, seconds, settings) if cost.rows else 1
        stage = stages[cost.stage]
        stage.batches += batches
        stage.at_most += seconds + batches * SECONDS_A_BATCH
        plan.wal_bytes += round(cost.wal_bytes * factor)
        plan.statements += round(cost.statements * factor) if cost.rows else cost.statements
    for stage in stages.values():
        stage.at_least = round(stage.at_most / workers, 1)
        stage.at_most = round(stage.at_most, 1)
    plan.stages = list(stages.values())
    plan.seconds_at_least = round(SECONDS_A_RUN + sum(s.at_least for s in plan.stages), 1)
    plan.seconds_at_most = round(SECONDS_A_RUN + sum(s.at_most for s in plan.stages), 1)
    plan.disk_bytes = round(rehearsal.disk_bytes * factor)
    plan.batches = sum(stage.batches for stage in plan.stages)
    plan.connections = slots.needed(workers, workers)
    plan.redis_bytes = min(plan.batches, 2 * partition.LARGEST_WINDOW) * BYTES_A_MESSAGE
    return plan


def _batches(rows: float, seconds: float, settings: Settings) -> int:
    """So many batches: as the setting says, or of TARGET_SECONDS within the limits of `auto`."""
    if settings.batch_size == "auto":
        fitting = int(rows * partition.TARGET_SECONDS / max(seconds, 0.001))
        size = min(partition.LARGEST_ROWS, max(partition.SMALLEST_ROWS, fitting))
    else:
        size = int(settings.batch_size)
    return max(1, -(-int(rows) // size))


def _gives_first(plan: Plan, free: int) -> str:
    """The first resource that runs short, in a sentence."""
    if plan.connections > free:
        return (
            f"connections: {plan.connections} are needed and {max(0, free)} are free; put a pooler"
            " in transaction mode between, raise max_connections, or take fewer workers"
        )
    return (
        f"disk: {plan.disk_bytes / 1e9:,.1f} GB for rows and indexes, and up to"
        f" {plan.wal_bytes / 1e9:,.1f} GB of WAL until it is archived or recycled"
    )
