"""Short runs under a shaken schedule: workers and applications pause at random moments.

A pause falls between two statements of a session, before its commit, and between the parts of a
statement that writes several tables. The choices follow from the seed; the schedule is the
operating system's, so a seed that failed is run again a few times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any
from unittest import mock
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError

from models.engine.live import replay
from models.engine.live.cutover import Settle
from models.ledger import identity
from models.ledger.tables import VERIFICATION, WORKED_ON, stages
from models.postgres import database as databases
from models.postgres.database import sqlstate
from models.reports.run import RunReport
from models.settings import DEFAULT_GRANTS, Settings, parse_grants
from producer.reports import status
from producer.runs import advance
from producer.schema import upgrade
from tests import oracle, variants
from tests.application import FOREIGN_KEY_VIOLATION, Application
from tests.driving import pending
from worker import batch

USERS, ROWS_A_BATCH, KEYS_A_BATCH = 18, 6, 3
WORKERS, APPLICATIONS = 3, 2
# Seconds: of a pause, and of the rest of an application between two transactions.
LONGEST, REST = 0.004, 0.04
DEADLOCK, UNIQUE_VIOLATION = "40P01", "23505"
# The server resolves a deadlock after a second, which is as long as a whole run.
_SESSION = "-c deadlock_timeout=20ms -c shaking.longest={}"

# Between the parts of one statement: each part calls the trigger of its table once.
_TABLES = ("ai_suites", "ai_tools", "tool_assignments", "tool_usage_logs", "credit_logs")
_PAUSE = """
CREATE FUNCTION public.pause() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF random() < 0.2 THEN
    PERFORM pg_sleep(random() * current_setting('shaking.longest', true)::float);
  END IF;
  RETURN NULL;
END $$
"""
_HANGING = {
    "usage log without its tool": "SELECT l.id FROM tool_usage_logs l"
    " WHERE NOT EXISTS (SELECT FROM ai_tools t WHERE t.id = l.tool_id)",
    "assignment without its tool": "SELECT a.tool_id FROM tool_assignments a"
    " WHERE NOT EXISTS (SELECT FROM ai_tools t WHERE t.id = a.tool_id)",
    "tool without its suite": "SELECT t.id FROM ai_tools t"
    " WHERE NOT EXISTS (SELECT FROM ai_suites s WHERE s.id = t.suite_id)",
    "tool without its usage log": "SELECT t.id FROM ai_tools t"
    " WHERE NOT EXISTS (SELECT FROM tool_usage_logs l WHERE l.tool_id = t.id)",
    "tool without its assignment": "SELECT t.id FROM ai_tools t"
    " WHERE NOT EXISTS (SELECT FROM tool_assignments a WHERE a.tool_id = t.id)",
    "balance other than its logs": "SELECT u.id FROM users u WHERE coalesce(credits_balance, 0) <>"
    " (SELECT coalesce(sum(CASE operation WHEN 'deduct' THEN -amount ELSE amount END), 0)"
    " FROM credit_logs c WHERE c.user_id = u.id)",
}


# Of two applications one yields to the other, and where a key refuses a deletion.
_YIELDS = (DEADLOCK, UNIQUE_VIOLATION, FOREIGN_KEY_VIOLATION)


class _Restless(Application):
    """An application whose transactions hold several writes, mostly of rows that change hands."""

    def __init__(self, engine: Engine, *, seed: int, prefix: str) -> None:
        super().__init__(engine, seed=seed, prefix=prefix)
        self._turn = threading.Lock()
        more: dict[str, int] = {"move_subscription": 24, "delete_subscription": 10, "use": 2,
                                "break_preferences": 8, "blank_email": 4}  # fmt: skip
        self._writes = [(more.get(write.__name__, weight), write) for weight, write in self._writes]

    def spare(self) -> None:
        """Nor is a project moved: its new owner may go at the same moment, and its tool stays."""
        with self._turn:
            super().spare()
            self._writes = [pair for pair in self._writes if pair[1].__name__ != "move_project"]

    def write(self) -> None:
        with self._turn:
            weights = [weight for weight, _ in self._writes]
            chosen = self.random.choices(self._writes, weights, k=self.random.randint(1, 4))
            try:
                with self.engine.begin() as connection:
                    for _, write in chosen:
                        write(connection)
                self.done.update(write.__name__ for _, write in chosen)
            except DBAPIError as failure:
                if sqlstate(failure) not in _YIELDS:
                    self.refused.append(str(failure.orig))


class _Catalogs(threading.local):
    """What a worker process keeps of the catalog, a thread each."""

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}

    def get(self, key: object, default: object) -> Any:
        return self.found.get(key, default)

    def __setitem__(self, key: object, value: object) -> None:
        self.found[key] = value

    def clear(self) -> None:
        self.found.clear()


def build(engine: Engine, settings: Settings) -> oracle.Snapshot:
    """A small school with the new schema beside it, and pauses in the tables' triggers."""
    with engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
        before = oracle.snapshot(connection, oracle.Names())
    upgrade.upgrade(engine, settings)
    with engine.begin() as connection:
        connection.exec_driver_sql(_PAUSE)
        for table in _TABLES:
            connection.exec_driver_sql(
                f"CREATE TRIGGER pause BEFORE INSERT OR UPDATE OR DELETE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.pause()"
            )
    return before


def shake(
    address: str, settings: Settings, before: oracle.Snapshot, seed: int, *, longest: float = 0
) -> list[str]:
    """What is wrong after a run with pauses up to `longest`; [] when all is right.

    With an even seed the applications stop before the last lock. With an odd one they write on, and
    through a second run, which replays what came after the lock of the first.
    """
    with _few_keys_a_batch(), ExitStack() as stack:
        made: list[Engine] = []

        def session(name: str) -> Engine:
            made.append(_restless(address, f"{seed} {name}", longest))
            stack.callback(made[-1].dispose)
            return made[-1]

        main = databases.create(address)
        stack.callback(main.dispose)
        with main.begin() as connection:
            # The database is the copy of a template.
            identity.settle(connection)
        workers = [session(f"worker {number}") for number in range(WORKERS)]
        applications = [
            _Restless(session(f"app {n}"), seed=10 * seed + n, prefix=f"live{n}")
            for n in range(APPLICATIONS)
        ]
        faults: list[str] = []
        for is_last in (False, True) if seed % 2 else (True,):
            ended = _run(main, workers, settings, applications, stops=is_last)
            if not ended.state.startswith("completed") or ended.differences:
                faults.append(f"{ended.state}, {ended.error}, {ended.differences}")
                break
        with main.connect() as connection:
            faults += [
                f"{fault}: {key}"
                for fault, query in _HANGING.items()
                for key in connection.scalars(sa.text(query))
            ]
            if not faults:
                faults += oracle.compare_now(connection, before, parse_grants(DEFAULT_GRANTS))
        return faults + [refused for each in applications for refused in each.refused]


def _run(
    main: Engine,
    workers: list[Engine],
    settings: Settings,
    applications: list[_Restless],
    *,
    stops: bool,
) -> RunReport:
    """One run, its open batches done side by side, while the applications write.

    They stop before the last lock, or from the verification on spare what a later run leaves alone.
    """
    run_id, _ = advance.open_run(main, settings)
    free, over = list(workers), threading.Event()

    def work(batch_id: int) -> None:
        engine = free.pop()
        try:
            batch.run(engine, settings, run_id, batch_id, "shaken")
        finally:
            free.append(engine)

    def go_on_writing(application: _Restless) -> None:
        while not over.wait(application.random.random() * REST):
            application.write()

    with ThreadPoolExecutor(len(workers)) as pool, ThreadPoolExecutor(APPLICATIONS) as writers:
        writing = [writers.submit(go_on_writing, application) for application in applications]
        try:
            while True:
                advance.advance(main, settings, run_id)
                with main.connect() as connection:
                    waiting = pending(connection, run_id)
                    if not stops and _has_begun(connection, run_id, VERIFICATION):
                        for application in applications:
                            application.spare()
                if stops and any(row.step == Settle.name for row in waiting):
                    over.set()
                    wait(writing)
                ended = status.read(main, run_id)
                if ended.state not in WORKED_ON:
                    return ended
                list(pool.map(work, [row.id for row in waiting]))
        finally:
            over.set()
            for each in writing:
                each.result()


def _has_begun(connection: Connection, run_id: str, stage: str) -> bool:
    begun = sa.select(stages.c.started_at).where(
        stages.c.run_id == run_id, stages.c.name == stage, stages.c.started_at.is_not(None)
    )
    return connection.execute(begun).first() is not None


@contextmanager
def _few_keys_a_batch() -> Iterator[None]:
    """Batches of a few keys, each worker thread with a catalog of its own, and no messages."""
    with (
        mock.patch.object(replay, "KEYS_A_BATCH", KEYS_A_BATCH),
        mock.patch.object(replay, "ROUNDS", 2),
        mock.patch.object(batch, "_catalogs", _Catalogs()),
        mock.patch.object(advance, "publish_window", lambda window: None),
    ):
        yield


def _restless(address: str, seed: str, longest: float) -> Engine:
    """An engine whose sessions pause before some of their statements and commits."""
    options = quote(_SESSION.format(longest))
    engine = databases.create(f"{address}&options={options}")
    random = Random(seed)

    def pause(*_: Any) -> None:
        if random.random() < 0.2:
            time.sleep(random.random() * longest)

    def listen(name: str, react: Callable[..., None]) -> None:
        event.listen(engine, name, react)

    listen("before_cursor_execute", pause)
    listen("commit", pause)
    return engine
