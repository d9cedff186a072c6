"""Names in reports that a migration cannot give to an entity or an amount."""

from __future__ import annotations

from models.reports.plan import Plan
from models.reports.run import RollbackReport, StatusReport

_KEYS = {"database", *RollbackReport.model_fields, *StatusReport.model_fields, *Plan.model_fields}
# Not keys: what they hold is named by the migration.
_RENAMED = {"entities", "amounts", "per_second"}
# What batches count besides, in the ledger.
_COUNTS = {
    *("rows_checked", "discrepancies", "accounted", "unaccounted"),
    *("final", "replayed", "removed"),
}
TAKEN = frozenset(_KEYS - _RENAMED | _COUNTS)
