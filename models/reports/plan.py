"""What `plan` reports."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from models.reports import words
from models.reports.error import ErrorReport


class PlannedStage(BaseModel):
    """One stage of a plan: batches, and seconds at least and at most."""

    name: str
    batches: int = 0
    at_least: float = 0.0
    at_most: float = 0.0


class Plan(BaseModel):
    """What a run will take, in seconds and bytes; `sample` rows of the first source were rehearsed.

    In JSON `rows` has that source's plural for its name.
    """

    rows: int = 0
    workers: int = 0
    sample: int = 0
    seconds_at_least: float = 0.0
    seconds_at_most: float = 0.0
    wal_bytes: int = 0
    disk_bytes: int = 0
    redis_bytes: int = 0
    statements: int = 0
    batches: int = 0
    connections: int = 0
    max_connections: int = 0
    gives_first: str = ""
    stages: list[PlannedStage] = Field(default_factory=list)
    error: ErrorReport | None = None

    @property
    def of(self) -> str:
        """The word for the rows that it counts."""
        return words.planned()

    @model_serializer(mode="wrap")
    def _named(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {self.of if n == "rows" else n: v for n, v in serialize(self).items()}
