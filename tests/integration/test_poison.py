"""Rows that kill whoever touches them: found by splitting, quarantined one by one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, text

from models.ledger import claims
from models.postgres import database as databases
from models.settings import Settings
from producer.reports import status
from producer.runs import advance, control, reconciler
from tests.driving import change, go_on, pending, scalar, start
from worker import batch

USERS = 150


class Workers:
    """Workers that die at certain rows: the claim stays, and its lease is let run out."""

    def __init__(self, engine: Engine, settings: Settings, run_id: str) -> None:
        self.engine, self.settings, self.run_id = engine, settings, run_id
        self.deaths = 0

    def run(
        self,
        *,
        users: set[str],
        subscriptions: set[str],
        step: str = "users",
        before: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """Work until the run is over, dying at these keys; `before` gets each batch's stage."""
        while status.read(self.engine, self.run_id).state in ("preparing", "running"):
            advance.advance(self.engine, self.settings, self.run_id)
            with self.engine.connect() as connection:
                waiting = pending(connection, self.run_id)
            for row in waiting:
                before(row.stage)
                if row.step == step and row.stage != "verification":
                    owners = self._killers(row, users, subscriptions)
                    if owners:
                        self._die(row.id)
                        continue
                batch.run(self.engine, self.settings, self.run_id, row.id, "test")
            change(self.engine, "UPDATE migration.batches SET lease_until = 'epoch'"
                   " WHERE state = 'running'")  # fmt: skip
            reconciler.tick(self.engine, self.settings)

    def _killers(self, row: sa.Row[tuple[object]], users: set[str], parts: set[str]) -> bool:
        scope = claims.scope_of(row._mapping)
        with self.engine.connect() as connection:
            mine = "true" if scope.parts is None else "s.id = ANY(:parts)"
            found = connection.execute(
                text(
                    f"SELECT u.id, s.id AS part FROM users u LEFT JOIN gpt_subscriptions s"
                    f" ON s.user_id = u.id AND {mine}"
                    f" WHERE {scope.condition('u.id', 'text')}"
                ),
                scope.parameters,
            ).all()
        return any(each.id in users or each.part in parts for each in found)

    def _die(self, batch_id: int) -> None:
        with databases.transaction(self.engine) as connection:
            assert claims.claim(connection, self.run_id, batch_id, "doomed")
        self.deaths += 1


def good_rows(engine: Engine) -> tuple[str, str]:
    """A user, and a subscription of another one, that are migrated when nothing kills."""
    with engine.connect() as connection:
        found = connection.execute(
            text(
                "SELECT s.user_id, min(s.id) AS id FROM gpt_subscriptions s"
                " JOIN users u ON u.id = s.user_id AND u.email LIKE '%@%'"
                " WHERE s.gpt_id <> '' AND s.preferences::text LIKE '{%rate_limit%}'"
                " GROUP BY s.user_id HAVING count(*) > 2 ORDER BY s.user_id"
            )
        ).all()
    return found[0].user_id, found[-1].id


def test_a_row_that_kills_its_worker_is_quarantined_and_nothing_else(
    engine: Engine, settings: Settings
) -> None:
    user, subscription = good_rows(engine)
    workers = Workers(engine, settings, start(engine, settings))
    workers.run(users={user}, subscriptions={subscription})
    ended = status.read(engine, workers.run_id)
    assert ended.exit_status == 3, ended.error
    with engine.connect() as connection:
        killed = connection.execute(
            text(
                "SELECT entity, legacy_key, attempts FROM migration.quarantine"
                " WHERE reason = 'worker_died' ORDER BY entity DESC"
            )
        ).all()
    assert [tuple(row) for row in killed] == [("user", user, 3), ("subscription", subscription, 3)]
    # Three deaths of the batch; then the hundredth of it, the row, the row's own part.
    assert workers.deaths <= 3 + 2 * 4
    owner = f"(SELECT user_id FROM gpt_subscriptions WHERE id = '{subscription}')"
    hanging = scalar(engine, f"SELECT count(*) FROM gpt_subscriptions WHERE user_id = {owner}")
    made = scalar(engine, f"SELECT count(*) FROM tool_assignments WHERE user_id = {owner}"
                  " AND tool_id LIKE 't-%'")  # fmt: skip
    assert made == hanging - 1
    assert scalar(engine, f"SELECT count(*) FROM ai_suites WHERE user_id = '{user}'") == 0


@pytest.mark.long
def test_a_page_that_kills_its_workers_and_holds_no_row_is_done_and_not_quarantined(
    engine: Engine, settings: Settings
) -> None:
    change(engine, "DELETE FROM gpt_subscriptions WHERE user_id NOT IN (SELECT id FROM users)")
    with engine.connect() as connection:
        everybody = set(connection.scalars(text("SELECT id FROM users")))
    workers = Workers(engine, settings, start(engine, settings))
    workers.run(users=everybody, subscriptions=set(), step="orphans")
    assert workers.deaths >= 3
    assert status.read(engine, workers.run_id).exit_status == 3
    found = "SELECT string_agg(DISTINCT state, ', ') FROM migration.batches WHERE step = 'orphans'"
    assert scalar(engine, found) == "done"
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine"
                  " WHERE reason = 'worker_died'") == 0  # fmt: skip


@pytest.mark.long
def test_a_fixed_killer_comes_with_a_retry_that_touches_only_it(
    engine: Engine, settings: Settings
) -> None:
    user, subscription = good_rows(engine)
    workers = Workers(engine, settings, start(engine, settings))
    workers.run(users={user}, subscriptions={subscription})
    last = scalar(engine, "SELECT max(id) FROM migration.batches")
    change(engine, "DELETE FROM migration.quarantine WHERE reason NOT IN"
           " ('worker_died', 'owner_quarantined')")  # fmt: skip
    control.retry(engine, settings, workers.run_id)
    tried = scalar(
        engine,
        f"SELECT count(DISTINCT k) FROM migration.batches, unnest(key_list) k"
        f" WHERE id > {last} AND step = 'users'",
    )
    assert tried <= 4
    workers.run(users=set(), subscriptions=set())
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine"
                  " WHERE reason = 'worker_died' AND state = 'open'") == 0  # fmt: skip
    assert scalar(engine, f"SELECT count(*) FROM ai_suites WHERE user_id = '{user}'") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "when"), [("changed_users", "projects"), ("late_users", "verification")]
)
def test_a_row_that_kills_once_it_has_changed_is_quarantined_with_what_it_had(
    engine: Engine, settings: Settings, step: str, when: str
) -> None:
    user, subscription = good_rows(engine)
    written: list[str] = []

    def write(stage: str) -> None:
        if stage == when and not written:
            written.append(stage)
            change(engine, "UPDATE users SET email = 'x' || email WHERE email LIKE '%@%'")

    workers = Workers(engine, settings, start(engine, settings))
    workers.run(users={user}, subscriptions={subscription}, step=step, before=write)
    ended = status.read(engine, workers.run_id)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert ended.quarantine["worker_died"] == 2
    assert scalar(engine, f"SELECT count(*) FROM ai_suites WHERE user_id = '{user}'") == 0
    tool = f"SELECT count(*) FROM ai_tools WHERE id = 't-{subscription}'"
    assert scalar(engine, tool) == 0


@pytest.mark.long
def test_many_changed_rows_that_are_refused_are_quarantined_where_others_pass(
    engine: Engine, settings: Settings
) -> None:
    written: list[str] = []

    def write(stage: str) -> None:
        if stage == "projects" and not written:
            written.append(stage)
            change(
                engine,
                "UPDATE users SET email = 'x' || email WHERE email LIKE '%@%'",
                "ALTER TABLE ai_suites ADD CHECK (name NOT LIKE 'x%7%') NOT VALID",
            )

    run_id = start(engine, settings)
    ended = go_on(engine, settings, run_id, before=write)
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    refused = scalar(engine, "SELECT count(*) FROM users WHERE email LIKE 'x%7%'")
    assert ended.quarantine["rejected"] == refused > 20
