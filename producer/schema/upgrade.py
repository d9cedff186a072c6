"""The schema step: Alembic adds ledger and target schema, in one transaction or not at all."""

from __future__ import annotations

from importlib import resources

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.engine.live import capture
from models.engine.schema import target
from models.engine.schema.indexes import record
from models.engine.source import Sources
from models.ledger import audit, identity, relations, revision, sums
from models.ledger.functions import TRY_JSONB
from models.ledger.tables import SCHEMA, VERIFICATION, WORKED_ON
from models.postgres.database import LOCK_TIMEOUT_MS, retry_locks, transaction
from models.preflight import examine, taken
from models.settings import Settings
from producer.broker.messages import QUEUES, Message

LOCK = 0x736368656D61  # any constant: two upgrades at the same moment take turns
# For an autoscaler: how many batches want a worker of each queue. Messages do not show that: no
# list holds one that a worker has, or one that was lost.
# A run that is worked on keeps one worker, also between two windows: its reconciler opens the next.
_VIEW = """
CREATE OR REPLACE VIEW {schema}.backlog AS
SELECT q.queue, (
    SELECT count(*) FROM {schema}.batches b JOIN {schema}.runs r ON r.id = b.run_id
    WHERE r.state IN ({worked_on}) AND b.state IN ('pending', 'running')
      AND CASE WHEN b.stage = '{verification}' THEN '{verify}' ELSE CASE b.step {whens} END END
        = q.queue
  ) + CASE WHEN q.queue = 'migration.control'
    AND EXISTS (SELECT FROM {schema}.runs r WHERE r.state IN ({worked_on})) THEN 1 ELSE 0 END
  AS batches
FROM (VALUES {queues}) AS q(queue)
"""


def upgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    """Bring the schema up to date; returns (kind, table, name) of what was added now.

    Safe to repeat. Raises Incompatible or NotAllowed, and then nothing was changed.
    """
    return retry_locks(lambda: _upgrade(engine, settings))


def _upgrade(engine: Engine, settings: Settings) -> list[tuple[str, str, str]]:
    with transaction(engine, lock_timeout_ms=LOCK_TIMEOUT_MS, statement_timeout_ms=0) as connection:
        added = bring_up(connection, settings)
        relations.require_own_ledger(connection, settings)
        return added


def bring_up(connection: Connection, settings: Settings) -> list[tuple[str, str, str]]:
    """The same in the caller's transaction, which others who upgrade wait for."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
    found = examine.examine(connection, settings, reads_values=False)
    examine.refuse(connection, found.fatal)
    tables = found.sources
    assert tables is not None
    taken.require_own_schema(connection)
    capture.require_free_names(connection, tables)
    config = _alembic()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    # Made anew by every upgrade, whatever revision the ledger is at.
    connection.exec_driver_sql(
        f"{TRY_JSONB}; {capture.FUNCTION}; {identity.FUNCTIONS}".replace("%", "%%")
    )
    identity.settle(connection)
    _define_backlog(connection)
    sums.catch_up(connection)
    # Outside Alembic's list of revisions: what the application dropped, or what another
    # legacy table lacks, is missing whatever revision the database says it is at.
    # Read once more, right before they are changed: the revisions took their time.
    tables = current.migration().read(connection, settings)
    added = target.expand(connection, current.migration().schema, tables)
    if added:
        record(connection, added)
        audit.note(connection, "schema upgrade", after={"added": len(added)})
    return added


def _define_backlog(connection: Connection) -> None:
    """Create the view, or replace it: a new step is a new line. Its names need no quotes."""
    steps = [*current.migration().steps, *current.migration().undo_steps]
    whens = (f"WHEN '{step.name}' THEN '{step.queue}'" for step in steps)
    connection.exec_driver_sql(
        _VIEW.format(
            schema=SCHEMA,
            worked_on=", ".join(f"'{state}'" for state in WORKED_ON),
            verification=VERIFICATION,
            verify=Message("", 0, VERIFICATION, current.migration().steps[0].name).queue,
            whens=" ".join(whens),
            queues=", ".join(f"('{queue}')" for queue in QUEUES),
        )
    )


def is_current(connection: Connection, tables: Sources) -> bool:
    """Whether ledger and target schema are there as this version of the product needs them."""
    if not connection.scalar(text("SELECT to_regclass('migration.alembic_version') IS NOT NULL")):
        return False
    # A role of the workers may not read the revision; it works on what is there.
    if revision.is_older(connection):
        return False
    schema = current.migration().schema
    return not target.missing(schema, target.of(schema, tables), tables)


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("models.ledger") / "revisions"))
    return config
