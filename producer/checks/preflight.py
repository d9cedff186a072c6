"""Before a run: all that can be read and a trial, and the refusal of what cannot go through."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Engine

from models.errors import MigrationError, TooBig, Transient
from models.ledger.tables import OPEN_STATES, SCHEMA, runs
from models.postgres.database import LOCK_TIMEOUT_MS, retry_locks, transaction
from models.preflight import examine, taken
from models.settings import Settings
from producer.checks import trial
from producer.checks.trial import Trial

_STATEMENT_TIMEOUT_MS = 600_000
_UPGRADED = "The schema step stays and no run was opened. To undo it: producer schema downgrade"


def require(engine: Engine, settings: Settings, *, before: Trial | None = None) -> Trial:
    """Raise the first obstacle to a run, before anything is changed; nothing while one is open.

    Where the trial was made on the tables themselves (`is_real`), or a run is open, it need not be
    repeated after the schema step. `before` is the trial before that step, where there was one.
    """
    if retry_locks(lambda: _is_open(engine, settings, reads_values=before is None)):
        return Trial(is_real=True)
    try:
        tried = trial.run(engine, settings, before.picked if before else None)
    except (Transient, TooBig):
        # The application holds locks, or the tables are too large: the run copes with both.
        return Trial()
    fatal = [obstacle for obstacle in tried.obstacles if obstacle.is_fatal]
    try:
        with transaction(engine) as connection:
            examine.refuse(connection, fatal)
    except MigrationError as error:
        if before is not None:
            error.hint = error.hint.replace("Nothing was changed.", _UPGRADED)
        raise
    return tried


def _is_open(engine: Engine, settings: Settings, *, reads_values: bool) -> bool:
    """Whether a run is open; raises what can be read and is in the way, where none is."""
    with transaction(
        engine, lock_timeout_ms=LOCK_TIMEOUT_MS, statement_timeout_ms=_STATEMENT_TIMEOUT_MS
    ) as connection:
        taken.require_own_schema(connection)
        if connection.scalar(sa.select(sa.func.to_regclass(f"{SCHEMA}.runs"))):
            states = (*OPEN_STATES, "rolling_back")
            if connection.scalar(sa.select(runs.c.id).where(runs.c.state.in_(states)).limit(1)):
                return True
        found = examine.examine(connection, settings, reads_values=reads_values)
        examine.refuse(connection, found.fatal)
        return False
