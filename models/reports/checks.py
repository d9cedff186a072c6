"""What `check`, `health` and `performance` report."""

from __future__ import annotations

from pydantic import BaseModel, Field

from models.reports.error import ErrorReport


class Check(BaseModel):
    """One thing that was looked at: `ok`, `failed`, or `unknown`, and what to do about it."""

    name: str = ""
    verdict: str
    found: str
    hint: str = ""
    # The check whose failure kept this one from being looked at.
    blocked_by: str = ""
    seconds: float = 0.0


class Checks(BaseModel):
    """A list of verdicts; `passed` while none of them is `failed`."""

    passed: bool = False
    checks: list[Check] = Field(default_factory=list)
    error: ErrorReport | None = None


class Speed(BaseModel):
    """Seconds that an endpoint or a query takes, over its repetitions, against its limit."""

    kind: str
    name: str
    verdict: str
    repetitions: int
    median: float
    p95: float
    maximum: float
    limit: float
    trouble: str = ""
    plan: list[str] = Field(default_factory=list)


class Speeds(BaseModel):
    """What was measured, and what was not; `passed` while nothing is beyond its limit."""

    passed: bool = False
    speeds: list[Speed] = Field(default_factory=list)
    not_checked: list[str] = Field(default_factory=list)
    error: ErrorReport | None = None
