"""The ledger's tables and states: runs, stages, batches, quarantine, differences, before-images.

They live in the schema `migration` of the dashboard's database, so that a batch's rows and its
state commit together. A run changes its state in `move_run`, a batch in `move_batches`, and nowhere
else: both refuse what the tables of transitions do not list.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql as pg

from models.errors import NotAllowed

SCHEMA = "migration"
VERIFICATION, RECONCILIATION, FINISH = "verification", "reconciliation", "finish"

# (from, to): when it happens
RUN_TRANSITIONS = {
    ("preparing", "running"): "its first batches are in the ledger",
    ("preparing", "paused"): "an operator pauses it, or its error budget is spent",
    ("preparing", "cancelled"): "an operator cancels it",
    ("preparing", "failed"): "a batch failed for good",
    ("running", "paused"): "an operator pauses it, or its error budget is spent",
    ("paused", "running"): "an operator resumes it, or retries what spent its error budget",
    ("running", "completed"): "the last stage closed, nothing quarantined, nothing different",
    ("running", "completed_with_quarantine"): "the same, but rows are quarantined",
    ("running", "failed"): "a batch failed for good, or a difference was found",
    ("running", "cancelled"): "an operator cancels it",
    ("paused", "cancelled"): "an operator cancels it",
    ("cancelled", "running"): "an operator resumes it",
    ("completed", "running"): "an operator verifies, reconciles or retries it",
    ("completed_with_quarantine", "running"): "an operator retries, verifies or reconciles it",
    ("failed", "running"): "an operator retries, verifies or reconciles it",
    ("completed", "completed_with_quarantine"): "an operator takes back that a row is accepted",
    ("completed", "rolling_back"): "an operator rolls it back",
    ("completed_with_quarantine", "rolling_back"): "an operator rolls it back",
    ("failed", "rolling_back"): "an operator rolls it back, or continues the rollback",
    ("cancelled", "rolling_back"): "an operator rolls it back",
    ("rolled_back", "rolling_back"): "an operator undoes by force what was kept",
    ("rolling_back", "rolled_back"): "all that it wrote is undone, or kept as a conflict",
    ("rolling_back", "failed"): "a batch of the rollback failed for good",
}
OPEN_STATES = ("preparing", "running", "paused")
COMPLETED_STATES = ("completed", "completed_with_quarantine")
FINISHED_STATES = (*COMPLETED_STATES, "failed", "cancelled", "rolled_back")
WORKED_ON = ("preparing", "running", "rolling_back")

# The directions of a stage: it belongs to the run itself, or to its rollback.
FORWARD, BACK = "forward", "back"

BATCH_TRANSITIONS = {
    ("pending", "running"): "a worker claims it: a lease, and the next attempt number",
    ("running", "running"): "its lease expired, and another worker claims it",
    ("running", "done"): "its rows and this state commit together, while the attempt stands",
    ("running", "pending"): "its lease expired, or its worker releases it for now",
    ("running", "failed"): "it cannot be done, not even row by row",
    ("running", "split"): "it took its worker down too often: smaller batches stand for it",
    ("running", "quarantined"): "the same, and it was one row: that is quarantined",
    ("failed", "pending"): "an operator retries it, or resumes its run",
}

metadata = sa.MetaData(schema=SCHEMA)


def _now(name: str, *, null: bool = False) -> sa.Column[object]:
    default = None if null else sa.func.clock_timestamp()
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=null)


# One row: which ledger this is. `database` says in which database that was written, so that a
# copy of the database can tell that it is a copy, and takes an id of its own.
ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("is_only", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.CheckConstraint("is_only"),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("database", sa.Text, nullable=False),
    _now("created_at"),
)
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False, server_default="preparing"),
    # The run was resumed after it, or a later run, was complete. The new application may have
    # changed what the run wrote, so its rows are treated like those of an earlier run.
    sa.Column("handed_over", sa.Boolean, nullable=False, server_default=sa.false()),
    # A rollback undoes what somebody changed since, too.
    sa.Column("forced", sa.Boolean, nullable=False, server_default=sa.false()),
    # Its before-images were dropped: it can no longer be rolled back.
    _now("forgotten_at", null=True),
    # Why workers start no batch at present, and when a worker last reported it (every second).
    sa.Column("throttled_by", sa.Text),
    _now("throttled_at", null=True),
    sa.Column("grants", pg.JSONB, nullable=False),
    sa.Column("batch_size", sa.Text, nullable=False),
    # From `producer tune`; null: each worker's own MIGRATION_THROTTLE, MIGRATION_WINDOW.
    sa.Column("throttle", sa.Text),
    sa.Column("hours", sa.Text),
    # The legacy tables' names: a worker that is set to others must not touch this run.
    sa.Column("tables", pg.ARRAY(sa.Text), nullable=False),
    # What those names resolved to when the run was opened; null for a run of version 0.1.
    sa.Column("relations", pg.JSONB),
    # Legacy rows by entity, as counted (or estimated, beyond a million) when the run was opened.
    sa.Column("totals", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
    # How a canary's rows were chosen, and how many (`models.ledger.selection`); null: all rows.
    sa.Column("selection", pg.JSONB(none_as_null=True)),
    sa.Column("error", sa.Text),
    # While it is paused: who did that, an operator or the error budget, and when.
    sa.Column("paused_by", sa.Text),
    _now("paused_at", null=True),
    _now("created_at"),
    _now("started_at", null=True),
    _now("finished_at", null=True),
    # By this index two producers at the same moment open one run.
    sa.Index(
        "one_open_run",
        sa.text("(true)"),
        unique=True,
        postgresql_where=sa.text("state IN ('preparing', 'running', 'paused', 'rolling_back')"),
    ),
)
# So long a worker's word counts: one that is gone throttles nothing.
_lately = sa.func.clock_timestamp() - sa.text("interval '5 seconds'")
throttled_by = sa.case((runs.c.throttled_at > _lately, runs.c.throttled_by))
stages = sa.Table(
    "stages",
    metadata,
    sa.Column("run_id", sa.Text, sa.ForeignKey(runs.c.id), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("direction", sa.Text, nullable=False),
    # A stage opens when all of its direction with a lower position are done. Stages of the same
    # position are worked on at the same time.
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    # Where the next window starts: a step of the stage, and the last key cut so far.
    sa.Column("step", sa.Text),
    sa.Column("last_key", sa.Text),
    sa.Column("window", sa.Integer, nullable=False, server_default="0"),
    # How many windows of that step were cut, and how many rows.
    sa.Column("step_windows", sa.Integer, nullable=False, server_default="0"),
    sa.Column("step_rows", sa.BigInteger, nullable=False, server_default="0"),
    # What its settled batches come to, up to the one with that id, and when the last one ended.
    sa.Column("sums", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("summed_to", sa.BigInteger, nullable=False, server_default="0"),
    _now("summed_until", null=True),
    _now("started_at", null=True),
    _now("finished_at", null=True),
)
# The order in which stages are listed: verification before reconciliation, a rollback's last.
LISTED = (stages.c.direction.desc(), stages.c.position, stages.c.name.desc())
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("window", sa.Integer, nullable=False),
    # Either a range of legacy keys (low exclusive, high inclusive, null: no bound) or a list.
    sa.Column("low", sa.Text),
    sa.Column("high", sa.Text),
    sa.Column("key_list", pg.ARRAY(sa.Text)),
    # One key only, with just these of the rows that hang on it: the end of a splitting.
    sa.Column("part_list", pg.ARRAY(sa.Text)),
    sa.Column("rows", sa.Integer, nullable=False, server_default="0"),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    # Since it was retried last: leases that ran out, and times that it was released.
    sa.Column("lapses", sa.Integer, nullable=False, server_default="0"),
    sa.Column("hand_backs", sa.Integer, nullable=False, server_default="0"),
    # Ever: leases that ran out, and times that the reconciler published it again.
    sa.Column("expiries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("republished", sa.Integer, nullable=False, server_default="0"),
    sa.Column("worker", sa.Text),
    # Null: not published yet; `producer.runs.advance` does it when the stage's turn comes.
    _now("published_at", null=True),
    _now("lease_until", null=True),
    _now("started_at", null=True),
    _now("finished_at", null=True),
    sa.Column("counts", pg.JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("error", sa.Text),
    sa.ForeignKeyConstraint(
        ["run_id", "stage"], [stages.c.run_id, stages.c.name], name="batches_stage"
    ),
    sa.Index("batches_in_order", "run_id", "stage", "id"),
    sa.Index("open_batches", "run_id", postgresql_where=sa.text("state IN ('pending', 'running')")),
    sa.Index("failed_batches", "run_id", "id", postgresql_where=sa.text("state = 'failed'")),
)
quarantine = sa.Table(
    "quarantine",
    metadata,
    sa.Column("entity", sa.Text, primary_key=True),
    sa.Column("legacy_key", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("batch_id", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="1"),
    sa.Column("state", sa.Text, nullable=False, server_default="open"),
    _now("first_seen_at"),
    _now("changed_at"),
    # Of the row as it was judged; null where nobody noted it. Another hash: changed since.
    sa.Column("row_hash", sa.BigInteger),
    # For who looks at a run: its reasons, and the first rows of each.
    sa.Index("quarantine_by_reason", "run_id", "reason", "entity", "legacy_key"),
    sa.Index(
        "standing_quarantine",
        "entity",
        "legacy_key",
        postgresql_where=sa.text("state IN ('open', 'accepted')"),
    ),
)
differences = sa.Table(
    "differences",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("stage", sa.Text, nullable=False),
    sa.Column("batch_id", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("entity", sa.Text, nullable=False),
    sa.Column("legacy_key", sa.Text, nullable=False),
    sa.Column("target_table", sa.Text, nullable=False),
    sa.Column("detail", sa.Text),
    # The page of a row and that of its parent may both find what is wrong with a target row.
    sa.Index(
        "one_difference",
        *("run_id", "stage", "entity", "legacy_key", "target_table", "kind"),
        sa.text("coalesce(detail, '')"),
        unique=True,
    ),
)
before_images = sa.Table(
    "before_images",
    metadata,
    sa.Column("entity", sa.Text, primary_key=True),
    sa.Column("legacy_key", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, primary_key=True),
    # The values that were not null before the run wrote; `kept` names those that it left alone.
    sa.Column("was", pg.JSONB, nullable=False),
)
# The target rows that declared steps create, each with a hash of what was written.
created_rows = sa.Table(
    "created_rows",
    metadata,
    sa.Column("entity", sa.Text, primary_key=True),
    sa.Column("source_key", sa.Text, primary_key=True),
    sa.Column("table_name", sa.Text, primary_key=True),
    sa.Column("row_key", sa.Text, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("row_hash", sa.BigInteger, nullable=False),
)
# What a rollback kept, since somebody had changed it, or hung a row of theirs on it.
conflicts = sa.Table(
    "conflicts",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    # changed: by somebody since; hanging: somebody's row on a created one; held: kept because of
    # such a row; refused: the database does not take the value of before; irreversible: all rows of
    # a step that nothing undoes; skipped: no page of the rollback held the row.
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("table_name", sa.Text, primary_key=True),
    sa.Column("row_key", sa.Text, primary_key=True),
    # The column, where it is one; '' for the whole row.
    sa.Column("detail", sa.Text, primary_key=True, server_default=""),
    # The created row that stays because of this one.
    sa.Column("holds", sa.Text),
    sa.Index("conflicts_holding", "run_id", "holds"),
)
# What the application changed in the legacy tables while a run was open, until it is replayed.
# Only inserted and deleted, so that no two writers of the application wait for each other.
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("entity", sa.Text, nullable=False),
    sa.Column("legacy_key", sa.Text, nullable=False),
    # The parent that the row belongs or belonged to, or its own key; null where it named none.
    sa.Column("owner_key", sa.Text),
    sa.Column("operation", sa.Text, nullable=False),
    _now("captured_at"),
    sa.Index("changes_by_owner", "owner_key", "entity"),
    sa.Index("changes_by_key", "legacy_key", "entity"),
)
# What operators did. Only ever added to: a trigger refuses anything else.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    _now("at"),
    # The operator's login, the machine and process, and the role that logged in to the database.
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False, server_default=sa.text("session_user")),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("before", pg.JSONB),
    sa.Column("after", pg.JSONB),
)
# What happened to a run. Triggers fill it, and it is only ever added to.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    _now("at"),
    # run: its new state and its error; stage: its end and its seconds; batch: why it failed; stuck.
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text),
    sa.Column("stage", sa.Text),
    sa.Column("batch_id", sa.BigInteger),
    sa.Column("note", sa.Text),
    sa.Index("events_by_run", "run_id", "id"),
)
# Messages about events, by channel: sent, or to be sent at `next_at`.
notices = sa.Table(
    "notices",
    metadata,
    sa.Column("event_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("channel", sa.Text, primary_key=True),
    sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
    _now("next_at"),
    _now("sent_at", null=True),
)
# What the reconciler set right in a round: a row for each kind, nothing where nothing was wrong.
recoveries = sa.Table(
    "recoveries",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    _now("at"),
    # expired: leases ran out; lost: messages were gone; split: batches took their workers down.
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("batches", sa.Integer, nullable=False),
    sa.Index("recoveries_by_run", "run_id", "id"),
)
schema_objects = sa.Table(
    "schema_objects",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("table_name", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    _now("added_at"),
)


def stages_in_turn(run: Any) -> sa.Select[Any]:
    """The stages that a run works on, in order: while it is rolled back, those of the rollback."""
    direction = BACK if run.state == "rolling_back" else FORWARD
    return (
        sa.select(stages)
        .where(stages.c.run_id == run.id, stages.c.direction == direction)
        .order_by(*LISTED)
    )


def move_run(connection: Connection, run_id: str, to: str, **values: object) -> str:
    """Move a run to another state if its present state allows it; returns the state it left.

    Raises NotAllowed, naming the present state, when the table has no such transition.
    """
    sources = [start for start, end in RUN_TRANSITIONS if end == to]
    now = sa.func.clock_timestamp()
    finished = now if to in FINISHED_STATES else None
    locked = (
        sa.select(runs.c.id, runs.c.state).where(runs.c.id == run_id).with_for_update().subquery()
    )
    left = connection.scalar(
        sa.update(runs)
        .where(runs.c.id == locked.c.id, locked.c.state.in_(sources))
        .values({"state": to, "finished_at": finished} | values)
        .returning(locked.c.state)
    )
    if left is None:
        state = connection.scalar(sa.select(runs.c.state).where(runs.c.id == run_id))
        raise NotAllowed(
            f"Run {run_id} is {state}: it cannot become {to}", hint="See: producer status"
        )
    return str(left)


def move_batches(to: str, **values: object) -> sa.Update:
    """The statement that moves batches, wherever their present state allows it.

    The caller adds which ones; `rowcount` or RETURNING says which were moved.
    """
    sources = [start for start, end in BATCH_TRANSITIONS if end == to]
    over = sa.func.clock_timestamp() if to not in ("pending", "running") else None
    return (
        sa.update(batches)
        .where(batches.c.state.in_(sources))
        .values({"state": to, "lease_until": None, "finished_at": over} | values)
    )
