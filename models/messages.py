"""What `--json` prints about a run: one shape, whether a command succeeds or fails."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, Field, PlainSerializer

Money = Annotated[Decimal, PlainSerializer(lambda value: f"{value:.2f}", return_type=str)]


class Standing(BaseModel):
    """How the legacy rows of one entity stand, whichever run migrated them."""

    total: int = 0
    migrated: int = 0
    quarantined: int = 0


class Rows(BaseModel):
    """Rows that this run wrote."""

    ai_suites: int = 0
    ai_tools: int = 0
    tool_assignments: int = 0
    tool_usage_logs: int = 0


class Verification(BaseModel):
    """The verification stage: rows checked, differences that stand."""

    state: str = "pending"
    rows_checked: int = 0
    differences: int = 0


class Reconciliation(BaseModel):
    """The credit reconciliation: users checked, discrepancies that stand."""

    state: str = "pending"
    users_checked: int = 0
    discrepancies: int = 0


class Batches(BaseModel):
    """Batches of a stage, of those opened so far."""

    total: int = 0
    done: int = 0
    failed: int = 0


class Stage(BaseModel):
    """One stage; `rows` and `rows_total` are what progress and time left count."""

    name: str
    state: str = "pending"
    batches: Batches = Field(default_factory=Batches)
    rows: int = 0
    rows_total: int = 0
    seconds: float = 0.0


class ErrorReport(BaseModel):
    """What went wrong and how to mend it."""

    kind: str
    message: str
    hint: str = ""


class RunReport(BaseModel):
    """A run as `status` and `enqueue-all --wait` report it."""

    run_id: str | None = None
    state: str | None = None
    throttled: bool = False
    users: Standing = Field(default_factory=Standing)
    subscriptions: Standing = Field(default_factory=Standing)
    projects: Standing = Field(default_factory=Standing)
    rows: Rows = Field(default_factory=Rows)
    credits_granted: Money = Decimal("0.00")
    verification: Verification = Field(default_factory=Verification)
    reconciliation: Reconciliation = Field(default_factory=Reconciliation)
    stages: list[Stage] = Field(default_factory=list)
    quarantine: dict[str, int] = Field(default_factory=dict)
    differences: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    users_per_second: float = 0.0
    eta_seconds: float | None = None
    error: ErrorReport | None = None

    @property
    def exit_status(self) -> int:
        """What a command ends with: 0 done or open, 3 rows set aside, 4 differences, 1 failed."""
        if self.state == "failed":
            return 4 if self.verification.differences or self.reconciliation.discrepancies else 1
        return {"completed_with_quarantine": 3, "cancelled": 1}.get(self.state or "", 0)
