"""What operators did is noted with the deed, and nobody takes it back."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from models.errors import NotAllowed
from models.settings import Settings
from producer.reports import status
from producer.runs import control
from tests.driving import change, start

USERS = 20


def test_every_control_action_is_noted_with_what_it_changed(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    control.pause(engine, None)
    control.resume(engine, settings, run_id)
    control.cancel(engine, run_id)
    found = status.actions(engine)
    assert [entry["action"] for entry in found] == [
        "cancel",
        "resume",
        "pause",
        "enqueue-all",
        "schema upgrade",
    ]
    assert (found[0]["before"], found[0]["after"]) == (
        {"state": "running"},
        {"state": "cancelled"},
    )
    assert {entry["run_id"] for entry in found[:-1]} == {run_id}
    assert all(entry["actor"] and "/" in entry["origin"] and entry["role"] for entry in found)


def test_an_action_that_is_refused_leaves_no_entry(engine: Engine, settings: Settings) -> None:
    run_id = start(engine, settings)
    before = status.actions(engine)
    with pytest.raises(NotAllowed):
        control.retry(engine, settings, run_id)
    assert status.actions(engine) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE migration.audit SET actor = 'nobody'",
        "DELETE FROM migration.audit",
        "TRUNCATE migration.audit",
        "DELETE FROM migration.events",
    ],
)
def test_the_audit_is_only_ever_added_to(
    engine: Engine, settings: Settings, statement: str
) -> None:
    start(engine, settings)
    with pytest.raises(DBAPIError, match="only ever added to"):
        change(engine, statement)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM migration.audit")) == 2
