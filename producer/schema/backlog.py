"""The view that an autoscaler reads: how many batches want a worker, by the queue that serves them.

Messages do not tell: one that a worker holds is in no list, and one that was lost neither. The view
is made anew with every upgrade, since a step more is a line more in it.
"""

from __future__ import annotations

from sqlalchemy import Connection

from models.engine import current
from models.ledger.tables import SCHEMA, VERIFICATION, WORKED_ON
from producer.broker.queue import QUEUES, Message

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


def define(connection: Connection) -> None:
    """Create the view, or bring it up to date. Its names are ours: none needs quoting."""
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
