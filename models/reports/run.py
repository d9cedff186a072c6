"""A run as `status` and `enqueue-all --wait` report it, whether they succeed or fail."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from models.reports import words
from models.reports.checks import Check
from models.reports.error import ErrorReport

Money = Annotated[Decimal, PlainSerializer(lambda value: f"{value:.2f}", return_type=str)]


class Standing(BaseModel):
    """How the legacy rows of one entity stand, whichever run migrated them."""

    total: int = 0
    migrated: int = 0
    quarantined: int = 0


class Verification(BaseModel):
    """The verification stage: rows checked, differences that stand.

    `waiting_for_retry`: rows that were changed since they were quarantined, and are good now.
    """

    state: str = "pending"
    rows_checked: int = 0
    differences: int = 0
    waiting_for_retry: int = 0


class Reconciliation(BaseModel):
    """The reconciliation: rows checked, discrepancies. The state `none`: the migration has none.

    In JSON `checked` has the entity in its name: `badges_checked`.
    """

    state: str = "pending"
    checked: int = 0
    discrepancies: int = 0

    @property
    def rows(self) -> str:
        """The word for the rows that it checks."""
        return words.reconciled()

    @model_serializer(mode="wrap")
    def _named(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = serialize(self)
        return {f"{self.rows}_checked" if n == "checked" else n: v for n, v in found.items()}


class Batches(BaseModel):
    """Batches of a stage, of those opened so far."""

    total: int = 0
    done: int = 0
    failed: int = 0
    pending: int = 0
    running: int = 0
    split: int = 0
    quarantined: int = 0


class Stage(BaseModel):
    """One stage; `rows` and `rows_total` are what progress and time left count."""

    name: str
    state: str = "pending"
    batches: Batches = Field(default_factory=Batches)
    rows: int = 0
    rows_total: int = 0
    seconds: float = 0.0
    # What its batches took, added up.
    busy_seconds: float = 0.0
    # At present, over some seconds; the average is rows over seconds.
    rows_per_second: float = 0.0


class TimeLeft(BaseModel):
    """Seconds until the run ends: as things go, and with what may well come between."""

    at_least: float
    likely: float
    at_most: float


class WorkerProcess(BaseModel):
    """A worker process: what it has done of a run, and what it does (no batch: it waits)."""

    worker: str
    batches: int = 0
    rows: int = 0
    stage: str | None = None
    batch_id: int | None = None
    attempt: int = 0
    # Since it claimed its batch, or finished the last one.
    seconds: float = 0.0
    # What is left of its lease; below nothing, it ran out.
    lease_seconds: float | None = None


class Recovery(BaseModel):
    """What the reconciler set right last: `expired`, `lost` or `split` batches."""

    kind: str
    batches: int
    seconds_ago: float


class Live(BaseModel):
    """What happens in an open run."""

    hands: list[WorkerProcess] = Field(default_factory=list)
    recovery: Recovery | None = None


def _entities() -> dict[str, Standing]:
    migration = words.migration()
    names = map(migration.plural, migration.counted) if migration else ()
    return {name: Standing() for name in names}


def _rows() -> dict[str, int]:
    migration = words.migration()
    return dict.fromkeys(migration.reported, 0) if migration else {}


def _amounts() -> dict[str, Decimal]:
    migration = words.migration()
    return dict.fromkeys(migration.amounts, Decimal("0.00")) if migration else {}


class RunReport(BaseModel):
    """A run as `status` and `enqueue-all --wait` report it.

    In JSON each entity stands under its plural, each amount under its name, and `per_second` has
    the first entity in its name: `badges`, `badges_per_second`.
    """

    run_id: str | None = None
    state: str | None = None
    throttled: bool = False
    throttled_by: str | None = None
    # While it is paused: who did that (an operator, or `error budget`), and when.
    paused_by: str | None = None
    paused_at: str | None = None
    # A canary: its `percent` (null: keys were named), and how many `keys`.
    selection: dict[str, Any] | None = None
    entities: dict[str, Standing] = Field(default_factory=_entities)
    # Rows that this run wrote, by table.
    rows: dict[str, int] = Field(default_factory=_rows)
    amounts: dict[str, Money] = Field(default_factory=_amounts)
    verification: Verification = Field(default_factory=Verification)
    reconciliation: Reconciliation = Field(default_factory=Reconciliation)
    stages: list[Stage] = Field(default_factory=list)
    quarantine: dict[str, int] = Field(default_factory=dict)
    differences: dict[str, int] = Field(default_factory=dict)
    # Batches that failed, by stage and error.
    failures: dict[str, int] = Field(default_factory=dict)
    # What a rollback kept, by table, column and kind.
    conflicts: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    per_second: float = 0.0
    # From 0 to 1, weighted by what a row of each stage costs.
    progress: float = 0.0
    eta_seconds: float | None = None
    time_left: TimeLeft | None = None
    live: Live | None = None
    error: ErrorReport | None = None

    @property
    def canary(self) -> str:
        """Which rows a canary is of, in words; "" for a run of all rows."""
        from models.ledger.selection import said

        return said(self.selection) if self.selection else ""

    @property
    def first(self) -> tuple[str, Standing]:
        """The first entity, by its plural, and how its rows stand."""
        return next(iter(self.entities.items()), (words.first(), Standing()))

    @model_serializer(mode="wrap")
    def _flat(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for name, value in serialize(self).items():
            if name in ("entities", "amounts"):
                flat |= value
            else:
                flat[f"{words.first()}_{name}" if name == "per_second" else name] = value
        return flat

    @property
    def exit_status(self) -> int:
        """What a command ends with: 0 done or open, 3 quarantined rows, 4 differences, 1 failed.

        A run that its error budget has paused waits for somebody to fix what it names.
        """
        if self.state == "paused" and self.error:
            return 1
        if self.state == "failed":
            found = self.verification.differences or self.reconciliation.discrepancies
            return 4 if found or self.differences else 1
        if self.state == "rolled_back":
            return 3 if self.conflicts else 0
        return {"completed_with_quarantine": 3, "cancelled": 1}.get(self.state or "", 0)


class StatusReport(RunReport):
    """What `status` reports: a run or, with `--history`, all runs and what operators did."""

    runs: list[dict[str, Any]] = Field(default_factory=list)
    actions: list[dict[str, Any]] = Field(default_factory=list)
    events: list[dict[str, Any]] = Field(default_factory=list)


class EnqueueReport(RunReport):
    """What `enqueue-all` reports: a run or, with `--dry-run`, what a page of one would write."""

    dry_run: bool = False
    refused: int = 0
    """Rows of pages that the database refused in a dry run."""


class VerifyReport(RunReport):
    """What `verify` reports: the run, and rules that rows of the application break."""

    warnings: list[Check] = Field(default_factory=list)


class RollbackReport(RunReport):
    """What `rollback` reports: the run that it undid last, all that it undid, and what is left."""

    rolled_back: list[str] = Field(default_factory=list)
    standing: list[str] = Field(default_factory=list)
