"""What `doctor` reports: what a run waits for."""

from __future__ import annotations

from pydantic import BaseModel, Field

from models.reports.error import ErrorReport


class Work(BaseModel):
    """A claimed batch: who has it, and the seconds left on its lease (negative: it ran out)."""

    batch_id: int
    worker: str | None
    attempt: int
    lease_seconds: float


class OpenStage(BaseModel):
    """A stage that is not done; every batch of it that is not done counts in one of the six."""

    name: str
    state: str
    waiting: int = 0
    unpublished: int = 0
    handed_back: int = 0
    running: int = 0
    expired: int = 0
    failed: int = 0
    oldest_waiting_seconds: float | None = None
    errors: list[str] = Field(default_factory=list)
    work: list[Work] = Field(default_factory=list)


class QueueState(BaseModel):
    """A queue: batches that wait for it in the ledger, messages in it (null: unknown), servants."""

    batches: int = 0
    messages: int | None = None
    workers: int = 0


class Chord(BaseModel):
    """A window under way in the result backend: tasks it counts on, tasks that came back."""

    id: str
    size: int
    returned: int


class Worker(BaseModel):
    """A worker that answers, its processes and the queues it serves."""

    name: str
    processes: list[int]
    queues: list[str]


class Blocker(BaseModel):
    """A session that holds what sessions of the migration wait for; `command` is one word."""

    pid: int
    application: str | None
    state: str | None
    command: str | None
    seconds: float
    waiting: int


class Finding(BaseModel):
    """What something means in plain words, and what to do about it where there is anything."""

    kind: str
    message: str
    hint: str = ""


class Fixed(BaseModel):
    """What `doctor` set right: batches by their ids, or stages by their names."""

    kind: str
    batches: list[int] = Field(default_factory=list)
    stages: list[str] = Field(default_factory=list)


class Diagnosis(BaseModel):
    """What a run waits for. `state` is as fixed, everything else as it was found."""

    run_id: str | None = None
    state: str | None = None
    redis: str | None = None
    stages: list[OpenStage] = Field(default_factory=list)
    queues: dict[str, QueueState] = Field(default_factory=dict)
    unacknowledged: dict[str, int] = Field(default_factory=dict)
    chords: list[Chord] = Field(default_factory=list)
    workers: list[Worker] = Field(default_factory=list)
    blockers: list[Blocker] = Field(default_factory=list)
    findings: list[Finding] = Field(default_factory=list)
    fixed: list[Fixed] = Field(default_factory=list)
    error: ErrorReport | None = None
