"""A run that says it is complete has accounted for every row, and judged every quarantined row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text

from models.dashboard.users import statement
from models.engine.checks.accounting import account
from models.engine.step import Context
from models.ledger.tables import runs
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.runs import control, partition, rollback, windows
from producer.runs.partition import Page
from tests import oracle
from tests.driving import change, go_on, scalar, start, whole_run
from tests.short import short

USERS, BATCH_SIZE = 60, 15
NAMES = oracle.Names()
GRANTS = parse_grants(DEFAULT_GRANTS)
STAGES = ("users", "projects", "switch", "verification", "reconciliation")


def snapshot(engine: Engine) -> oracle.Snapshot:
    with engine.connect() as connection:
        return oracle.snapshot(connection, NAMES)


def wrong_rows(engine: Engine, before: oracle.Snapshot) -> list[str]:
    with engine.connect() as connection:
        return oracle.compare_now(connection, before, GRANTS)


def keys_of(engine: Engine, kind: str, entity: str) -> set[str]:
    with engine.connect() as connection:
        statement = text(
            "SELECT legacy_key FROM migration.differences WHERE kind = :kind AND entity = :entity"
        )
        return set(connection.scalars(statement, {"kind": kind, "entity": entity}))


def keys_in(engine: Engine, query: str) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(text(query)))


@contextmanager
def losing_pages() -> Iterator[None]:
    """The second page of each cut of three or more is lost."""
    whole = partition.cut

    def cut(*arguments: Any, **options: Any) -> list[Page]:
        pages = whole(*arguments, **options)
        return [pages[0], *pages[2:]] if len(pages) >= 3 else pages

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(partition, "cut", cut)
        yield


def retried(engine: Engine, settings: Settings, ended: RunReport) -> RunReport:
    assert ended.run_id
    control.retry(engine, settings, ended.run_id)
    return go_on(engine, settings, ended.run_id)


def test_a_page_that_is_lost_in_every_stage_is_found_and_a_retry_migrates_it(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    with losing_pages():
        ended = whole_run(engine, settings)
    seen = (
        "SELECT id FROM users EXCEPT SELECT legacy_key FROM migration.quarantine"
        " WHERE entity = 'user'"
    )
    good = keys_in(engine, seen)
    made = keys_in(engine, "SELECT user_id FROM credit_logs WHERE reason = 'migration_grant'")
    assert made < good
    assert (ended.state, ended.exit_status) == ("failed", 4)
    assert keys_of(engine, "unaccounted", "user") == good - made
    assert ended.entities["users"].migrated == len(made)
    found = retried(engine, settings, ended)
    assert (found.exit_status, found.differences) == (3, {}), found.error
    assert wrong_rows(engine, before) == []
    for name in ("users", "subscriptions", "projects"):
        standing = found.entities[name]
        assert standing.migrated == standing.total - standing.quarantined > 0


@pytest.mark.parametrize("lost", short(STAGES, "users"))
def test_a_page_that_is_lost_in_one_stage_never_ends_as_complete(
    engine: Engine, settings: Settings, lost: str
) -> None:
    before = snapshot(engine)
    whole = windows._pages

    def pages(*arguments: Any) -> tuple[list[dict[str, Any]], str | None]:
        found, after = whole(*arguments)
        is_lost = arguments[3].name == lost and len(found) >= 3
        return ([found[0], *found[2:]] if is_lost else found), after

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(windows, "_pages", pages)
        ended = whole_run(engine, settings)
    assert (ended.state, ended.exit_status) == ("failed", 4)
    found = retried(engine, settings, ended)
    assert (found.exit_status, found.differences) == (3, {}), found.error
    assert wrong_rows(engine, before) == []


@pytest.mark.long
def test_more_rows_than_are_listed_are_all_retried(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.engine.checks.accounting.MOST_KEYS", 3)
    before = snapshot(engine)
    with losing_pages():
        ended = whole_run(engine, settings)
    assert len(keys_of(engine, "unaccounted", "user")) == 3
    assert ended.verification.differences > sum(ended.differences.values())
    assert "not accounted for" in str(ended.error and ended.error.message)
    found = retried(engine, settings, ended)
    assert (found.exit_status, found.differences) == (3, {}), found.error
    assert wrong_rows(engine, before) == []


def test_pages_tell_what_counting_each_row_tells_until_one_row_is_in_none(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    with engine.connect() as connection:
        run = connection.execute(sa.select(runs).where(runs.c.id == finished.run_id)).one()
        context = Context.read(connection, settings, run)
        by_pages, lost = account(context, by_pages=True)
        assert (by_pages, lost) == account(context)
        assert all(each["total"] > each["quarantined"] > 0 for each in by_pages.values())
        # Each in turn: a row that no page held, one that the quarantine forgot, a doubled page.
        for spoil, found in (
            ("INSERT INTO users (id, email, hashed_password, full_name)"
             " VALUES ('new', 'new@x', 'x', 'x')", 1),
            ("DELETE FROM migration.quarantine WHERE entity = 'user'", None),
            ("INSERT INTO migration.batches (run_id, stage, step, \"window\", state, counts)"
             " SELECT run_id, stage, step, \"window\", state, counts FROM migration.batches"
             " WHERE stage = 'verification' AND step = 'users' LIMIT 1", 0),
        ):  # fmt: skip
            with connection.begin_nested() as spoiled:
                connection.exec_driver_sql(spoil)
                counted, lost = account(context, ["user"], by_pages=True)
                assert counted == account(context, ["user"])[0]
                assert lost == (by_pages["users"]["quarantined"] if found is None else found)
                spoiled.rollback()


def test_a_project_that_stands_while_its_owner_is_quarantined_is_a_difference(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    project = scalar(
        engine,
        "SELECT min(legacy_key) FROM migration.quarantine"
        " WHERE entity = 'project' AND reason = 'owner_quarantined'",
    )
    change(
        engine,
        f"DELETE FROM migration.quarantine WHERE legacy_key = '{project}'",
        f"UPDATE projects SET is_template = false, active_gpt_id = NULL WHERE id = '{project}'",
    )
    control.check_again(engine, settings, run_id, "verification")
    assert go_on(engine, settings, run_id).state == "failed"
    assert keys_of(engine, "missing", "project") == {project}


def test_a_second_run_accounts_for_what_the_first_one_migrated(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    second = whole_run(engine, settings)
    for ended in (finished, second):
        assert (ended.exit_status, ended.differences) == (3, {})
    assert second.entities == finished.entities


def test_rows_that_a_faulty_worker_quarantined_are_a_difference_and_a_retry_migrates_them(
    engine: Engine, settings: Settings
) -> None:
    before = snapshot(engine)
    bad = "{email_is_blank} AS is_bad"
    assert bad in statement.MIGRATE
    with pytest.MonkeyPatch.context() as patched:
        faulty = bad.replace(" AS is_bad", " OR u.email LIKE '%.1%' AS is_bad")
        patched.setattr(statement, "MIGRATE", statement.MIGRATE.replace(bad, faulty))
        ended = whole_run(engine, settings)
    good = keys_in(engine, "SELECT id FROM users WHERE email LIKE '%.1%'")
    assert len(good) > 3
    assert (ended.state, ended.exit_status) == ("failed", 4)
    assert keys_of(engine, "wrongly_quarantined", "user") == good
    found = retried(engine, settings, ended)
    assert (found.exit_status, found.differences) == (3, {}), found.error
    assert wrong_rows(engine, before) == []


BY_HAND = (
    "INSERT INTO migration.quarantine (entity, legacy_key, run_id, reason, message)"
    " SELECT '{entity}', t.id, '{run_id}', '{reason}', 'by hand' FROM {table} t"
    " WHERE NOT EXISTS (SELECT FROM migration.quarantine q"
    "   WHERE q.entity = '{entity}' AND q.legacy_key = t.id AND q.state = 'open')"
    " ORDER BY t.id LIMIT 3"
)


@pytest.mark.parametrize(
    ("entity", "table", "reason"),
    [
        pytest.param("user", "users", "email_blank", marks=pytest.mark.long),
        ("subscription", "gpt_subscriptions", "preferences_malformed"),
        ("project", "projects", "owner_quarantined"),
    ],
)
def test_good_rows_that_were_quarantined_by_hand_are_a_difference(
    engine: Engine,
    settings: Settings,
    before: oracle.Snapshot,
    finished: RunReport,
    entity: str,
    table: str,
    reason: str,
) -> None:
    run_id = str(finished.run_id)
    change(engine, BY_HAND.format(entity=entity, table=table, reason=reason, run_id=run_id))
    control.check_again(engine, settings, run_id, "verification")
    ended = go_on(engine, settings, run_id)
    assert (ended.state, ended.exit_status) == ("failed", 4)
    assert len(keys_of(engine, "wrongly_quarantined", entity)) == 3
    found = retried(engine, settings, ended)
    assert (found.exit_status, found.differences) == (3, {}), found.error
    assert wrong_rows(engine, before) == []


def test_rows_that_were_fixed_since_wait_for_a_retry_and_are_no_difference(
    engine: Engine, settings: Settings, before: oracle.Snapshot, finished: RunReport
) -> None:
    change(
        engine,
        "UPDATE users SET email = id || '@example.org' WHERE btrim(coalesce(email, '')) = ''",
        "UPDATE gpt_subscriptions SET gpt_id = 'fixed' WHERE btrim(coalesce(gpt_id, '')) = ''",
        "INSERT INTO users (id, email, hashed_password, full_name)"
        " SELECT DISTINCT s.user_id, s.user_id || '@example.org', 'x', 'x'"
        " FROM gpt_subscriptions s WHERE s.user_id IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM users u WHERE u.id = s.user_id)",
    )
    run_id = str(finished.run_id)
    # The new users are no part of what was migrated: they differ until the retry.
    control.check_again(engine, settings, run_id, "verification")
    checked = go_on(engine, settings, run_id)
    assert not [name for name in checked.differences if "wrongly_quarantined" in name]
    waiting = scalar(
        engine,
        "SELECT sum((counts #>> '{quarantine,waiting}')::int) FROM migration.batches"
        " WHERE step = 'accounting'",
    )
    assert waiting == checked.verification.waiting_for_retry > 3
    found = retried(engine, settings, checked)
    assert str(found.state).startswith("completed"), found.error
    assert (found.verification.waiting_for_retry, found.differences) == (0, {})
    assert wrong_rows(engine, before) == []


def test_rows_that_an_operator_accepted_are_not_judged(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    change(engine, BY_HAND.format(entity="user", table="users", reason="email_blank",
                                  run_id=run_id))  # fmt: skip
    change(engine, "UPDATE migration.quarantine SET state = 'accepted' WHERE message = 'by hand'")
    control.check_again(engine, settings, run_id, "verification")
    ended = go_on(engine, settings, run_id)
    assert not [name for name in ended.differences if "wrongly_quarantined" in name]


def test_rows_that_the_database_refused_are_listed_as_that(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    user = scalar(engine, "SELECT min(id) FROM users WHERE email LIKE '%@%'")
    change(engine, f"ALTER TABLE ai_suites ADD CHECK (user_id <> '{user}') NOT VALID")
    ended = go_on(engine, settings, run_id)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert ended.quarantine["rejected"] == 1
    counted = scalar(
        engine,
        "SELECT sum((counts #>> '{quarantine,refused,rejected}')::int) FROM migration.batches",
    )
    assert counted == 1


def test_a_page_that_a_rollback_loses_is_a_conflict(
    engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    with losing_pages():
        rollback.start(engine, settings, run_id, force=False)
        undone = go_on(engine, settings, run_id)
    assert (undone.state, undone.exit_status) == ("rolled_back", 3)
    assert undone.conflicts["users skipped"] > 0
    rollback.start(engine, settings, run_id, force=True)
    again = go_on(engine, settings, run_id)
    assert (again.exit_status, again.conflicts) == (0, {})
    assert scalar(engine, "SELECT count(*) FROM ai_tools") == 0
