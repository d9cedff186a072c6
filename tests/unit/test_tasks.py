"""The tasks as Celery knows them."""

from __future__ import annotations

from worker.tasks import app


def test_only_what_cannot_be_taken_up_again_has_no_limit() -> None:
    limits = {name: app.tasks[name].time_limit for name in app.tasks if "migration." in name}
    assert {name for name, limit in limits.items() if limit is None} == {
        "migration.advance",
        "migration.contract",
        "migration.early_indexes",
        "migration.indexes",
        "migration.keys",
        "migration.loosen",
        "migration.tidy",
    }
    assert set(limits.values()) == {None, 1800}
