"""Subscriptions without an owner are found wherever they sort, by pages that leave no gap."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from models.engine import current
from models.postgres.database import transaction
from models.settings import Settings
from producer.runs import partition
from tests.driving import change, scalar, start, whole_run

USERS, BATCH_SIZE = 20, 7

_SHAPE = (
    "DELETE FROM projects",
    "DELETE FROM gpt_subscriptions",
    "ALTER TABLE gpt_subscriptions ALTER user_id DROP NOT NULL",
)
# Before the first user, right behind one, between two, behind the last one, and nobody.
_OWNERS = ("'a'", "u.first || 'x'", "u.middle || 'x'", "u.last || 'x'", "'zzz'", "NULL")


def orphan(engine: Engine, owner: str) -> None:
    change(
        engine,
        "INSERT INTO gpt_subscriptions (id, user_id, gpt_id, status)"
        " SELECT 'orphan-' || (SELECT count(*) FROM gpt_subscriptions),"
        f" {owner}, 'gpt', 'active' FROM (SELECT min(id) AS first,"
        "   percentile_disc(0.5) WITHIN GROUP (ORDER BY id) AS middle, max(id) AS last"
        "   FROM users) AS u",
    )


def quarantined(engine: Engine) -> list[str]:
    query = (
        "SELECT array_agg(legacy_key ORDER BY legacy_key) FROM migration.quarantine"
        " WHERE entity = 'subscription' AND reason = 'owner_missing' AND state = 'open'"
    )
    return list(scalar(engine, query) or [])


def test_orphans_are_found_wherever_they_sort(engine: Engine, settings: Settings) -> None:
    change(engine, *_SHAPE)
    for owner in _OWNERS:
        orphan(engine, owner)
    report = whole_run(engine, settings)
    assert quarantined(engine) == [f"orphan-{number}" for number in range(len(_OWNERS))]
    assert report.state == "completed_with_quarantine"
    assert (report.verification.differences, report.entities["subscriptions"].quarantined) == (
        0,
        len(_OWNERS),
    )


def test_orphans_are_found_where_there_are_no_users(engine: Engine, settings: Settings) -> None:
    change(engine, *_SHAPE, "DELETE FROM users")
    for owner in ("'a'", "'zzz'", "NULL"):
        orphan(engine, owner)
    report = whole_run(engine, settings)
    assert quarantined(engine) == ["orphan-0", "orphan-1", "orphan-2"]
    assert (report.entities["users"].total, report.entities["subscriptions"].total) == (0, 3)


def test_orphans_are_found_where_their_owners_sort_otherwise(
    engine: Engine, settings: Settings
) -> None:
    change(engine, *_SHAPE, 'ALTER TABLE gpt_subscriptions ALTER user_id TYPE text COLLATE "POSIX"')
    for owner in ("'a'", "'zzz'", "NULL"):
        orphan(engine, owner)
    whole_run(engine, settings)
    assert quarantined(engine) == ["orphan-0", "orphan-1", "orphan-2"]


def test_the_verification_finds_an_orphan_that_nobody_quarantined(
    engine: Engine, settings: Settings
) -> None:
    change(engine, *_SHAPE)
    for owner in _OWNERS:
        orphan(engine, owner)
    removed: list[str] = []

    def forget(stage: str) -> None:
        if stage == "verification" and not removed:
            removed.append(stage)
            change(engine, "DELETE FROM migration.quarantine WHERE entity = 'subscription'")

    report = whole_run(engine, settings, before=forget)
    assert report.verification.differences == len(_OWNERS)
    assert scalar(engine, "SELECT min(detail) FROM migration.differences") == "no owner"


@pytest.mark.parametrize("rows", [6, 7, 10, 20, 50])
def test_pages_leave_no_gap_and_the_last_one_is_open(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    # Of twelve keys a statement: a large window is cut by several.
    monkeypatch.setattr(partition, "KEYS_AT_ONCE", 12)
    start(engine, settings)
    with transaction(engine, also="SET LOCAL enable_seqscan = off") as connection:
        users = current.migration().read(connection, settings).users
        pages = partition.cut(connection, users, after=None, rows=rows, pages=3)
        while pages[-1].high is not None:
            pages += partition.cut(connection, users, after=pages[-1].high, rows=rows, pages=3)
        total = connection.scalar(text("SELECT count(*) FROM users"))
        # Whatever the planner was told for it holds for nothing else.
        assert connection.scalar(text("SHOW enable_seqscan")) == "off"
        assert connection.scalar(text("SHOW enable_sort")) == "on"
    assert sum(page.rows for page in pages) == total
    assert [page.low for page in pages] == [None, *(page.high for page in pages[:-1])]
    assert all(page.rows == rows for page in pages[:-1])
