"""Names in reports that a migration cannot give to an entity or an amount."""

from __future__ import annotations

from models.reports.plan import Plan
from models.reports.run import RollbackReport, StatusReport, VerifyReport

_REPORTS = (RollbackReport, StatusReport, VerifyReport, Plan)
_KEYS = {"database", *(name for report in _REPORTS for name in report.model_fields)}
# Not keys: what they hold is named by the migration.
_RENAMED = {"entities", "amounts", "per_second"}
# What batches count besides, in the ledger.
_COUNTS = {
    *("rows_checked", "discrepancies", "accounted", "unaccounted"),
    *("final", "replayed", "removed"),
}
TAKEN = frozenset(_KEYS - _RENAMED | _COUNTS)
