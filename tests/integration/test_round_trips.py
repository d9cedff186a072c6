"""How often a batch asks the database: far away, each statement costs a round trip."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from sqlalchemy import Engine

from models.settings import Settings
from tests.driving import scalar, spent, whole_run
from worker import batch

USERS, BATCH_SIZE = 250, 50
# Claim included; BEGIN and COMMIT of its two transactions are not.
STATEMENTS = {
    "users/users": 9,
    "projects/projects": 8,
    "switch/switch": 8,
    "verification/users": 9,
    "verification/projects": 8,
    "reconciliation/credits": 9,
}


def test_a_batch_sends_no_more_statements_than_it_must(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, list[int]] = defaultdict(list)
    real = batch.run

    def run(*args: Any) -> Any:
        with spent(engine) as found:
            outcome = real(*args)
        query = f"SELECT stage || '/' || step FROM migration.batches WHERE id = {args[3]}"
        sent[scalar(engine, query)].append(found.statements)
        return outcome

    monkeypatch.setattr(batch, "run", run)
    whole_run(engine, settings)
    assert {name: min(sent[name]) for name in STATEMENTS} == STATEMENTS
    # Two stages of one turn share what the first batch read in the catalog.
    assert max(sent["reconciliation/credits"]) == STATEMENTS["reconciliation/credits"]
