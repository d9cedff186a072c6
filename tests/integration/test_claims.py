"""The fence: of many workers one has the batch, and only the newest attempt commits."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from models.engine import current
from models.errors import LeaseLost, NotAllowed
from models.ledger import claims
from models.ledger.tables import BACK, FORWARD, batches, move_run, runs, stages
from models.postgres import database as databases
from models.postgres.database import transaction
from models.settings import Settings
from producer.schema import upgrade
from tests import variants
from worker import batch

SETTINGS = Settings.model_construct(
    users_table="users", subscriptions_table="gpt_subscriptions", projects_table="projects"
)
RUN = "20260101-000000-aaaa"


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """A ledger with one running run and one pending batch, number 1."""
    engine = databases.create(database)
    with engine.begin() as connection:
        variants.PLAIN.build(connection, 1)
    upgrade.upgrade(engine, SETTINGS)
    with engine.begin() as connection:
        connection.execute(
            sa.insert(runs).values(
                id=RUN,
                grants={},
                batch_size="auto",
                state="running",
                tables=current.table_names(SETTINGS),
            )
        )
        connection.execute(
            sa.insert(stages).values(run_id=RUN, direction=FORWARD, name="users", position=1)
        )
        connection.execute(
            sa.insert(batches).values(run_id=RUN, stage="users", step="users", window=1)
        )
    yield engine
    engine.dispose()


def state(engine: Engine) -> tuple[str, int]:
    with engine.connect() as connection:
        row = connection.execute(sa.select(batches.c.state, batches.c.attempt)).one()
        return row.state, row.attempt


def lapse(engine: Engine) -> None:
    """Let the lease expire by moving it, not by waiting."""
    with engine.begin() as connection:
        connection.execute(
            sa.update(batches).values(
                lease_until=sa.text("clock_timestamp() - interval '1 second'")
            )
        )


def claim(engine: Engine, worker: str = "a") -> claims.Claim | None:
    with databases.transaction(engine) as connection:
        return claims.claim(connection, RUN, 1, worker)


def test_of_many_claims_at_the_same_moment_one_wins(engine: Engine) -> None:
    won: list[claims.Claim] = []
    start = threading.Barrier(4)

    def race(name: str) -> None:
        start.wait()
        found = claim(engine, name)
        if found:
            won.append(found)

    threads = [threading.Thread(target=race, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert state(engine) == ("running", 1)


@pytest.mark.parametrize(
    ("direction", "position", "is_claimed"),
    [(FORWARD, 0, False), (FORWARD, 1, True), (FORWARD, 2, True), (BACK, 0, True)],
)
def test_a_claim_waits_for_open_stages_of_lower_positions_in_its_direction(
    engine: Engine, direction: str, position: int, is_claimed: bool
) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.insert(stages).values(
                run_id=RUN, direction=direction, name="other", position=position
            )
        )
    assert bool(claim(engine)) == is_claimed


@pytest.mark.long
def test_a_claim_is_made_anew_on_another_connection(engine: Engine, database: str) -> None:
    with transaction(engine) as connection:
        broken = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    another = databases.create(database)
    with another.begin() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": broken})
    another.dispose()
    # That connection was in use a moment ago, so nobody asks whether it still works. The batch
    # itself fails, whose run has no relations: it was claimed.
    batch.run(engine, SETTINGS, RUN, 1, "worker")
    assert state(engine)[1] == 1


def test_a_late_commit_is_refused_and_changes_nothing(engine: Engine) -> None:
    late = claim(engine, "frozen")
    lapse(engine)
    newer = claim(engine, "other")
    assert late and newer and newer.attempt == 2
    with pytest.raises(LeaseLost), databases.transaction(engine) as connection:
        connection.execute(sa.text("UPDATE users SET full_name = 'late'"))
        claims.complete(connection, late, {})
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT max(full_name) FROM users")) != "late"
    with databases.transaction(engine) as connection:
        claims.complete(connection, newer, {"users": {"total": 1}})
    assert state(engine) == ("done", 2)


def test_a_lease_that_still_runs_is_not_taken(engine: Engine) -> None:
    assert claim(engine)
    assert claim(engine, "other") is None


@pytest.mark.parametrize("over", ["paused", "cancelled", "failed", "completed"])
def test_a_run_that_is_not_running_gives_nothing_out(engine: Engine, over: str) -> None:
    with databases.transaction(engine) as connection:
        move_run(connection, RUN, over)
    assert claim(engine) is None


@pytest.mark.parametrize("change", [claims.renew, claims.hand_back])
def test_only_the_holder_may_renew_or_hand_back(engine: Engine, change: object) -> None:
    late = claim(engine)
    lapse(engine)
    assert late and claim(engine, "other")
    arguments = (late,) if change is claims.renew else (late, "why")
    with pytest.raises(LeaseLost), databases.transaction(engine) as connection:
        change(connection, *arguments)  # type: ignore[operator]


def test_a_handed_back_batch_is_had_at_once(engine: Engine) -> None:
    mine = claim(engine)
    assert mine
    with databases.transaction(engine) as connection:
        claims.hand_back(connection, mine, "shutting down")
    again = claim(engine, "other")
    assert again and again.attempt == 2


def test_a_transition_that_the_table_does_not_list_is_refused(engine: Engine) -> None:
    with databases.transaction(engine) as connection:
        move_run(connection, RUN, "completed")
    with pytest.raises(NotAllowed, match="is completed"), databases.transaction(engine) as c:
        move_run(c, RUN, "paused")


def test_a_claim_of_another_run_or_an_unknown_batch_finds_nothing(engine: Engine) -> None:
    with databases.transaction(engine) as connection:
        assert claims.claim(connection, "another", 1, "a") is None
        assert claims.claim(connection, RUN, 99, "a") is None
