"""What a run would write: a page of the rows through every step, on copies, rolled back."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from sqlalchemy import Engine

from models.engine import current
from models.reports.run import RunReport, Standing
from models.settings import Settings
from producer.checks import preflight
from producer.checks.rehearsal import ROWS_A_PAGE, Rehearsal, rehearse


def run(
    engine: Engine, settings: Settings, rows_wanted: int = ROWS_A_PAGE
) -> tuple[RunReport, Rehearsal]:
    """Rehearse about so many rows; the report has its counts and no run.

    Raises what `rehearse` raises.
    """
    preflight.require(engine, settings)
    found = rehearse(engine, settings, rows_wanted)
    counts, migration = found.counts, current.migration()
    rows: dict[str, Any] = counts.get("rows", {})
    return RunReport(
        entities={
            name: Standing(**{what: standing[what] for what in Standing.model_fields})
            for name, standing in counts.get("accounted", {}).items()
        },
        rows={name: int(rows.get(name, 0)) for name in migration.reported},
        amounts={name: Decimal(counts.get(name, "0")) for name in migration.amounts},
        quarantine=found.quarantined,
        differences=dict(found.differences),
    ), found
