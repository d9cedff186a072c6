"""An eye on the ledger from inside its database: every move, and what should have hindered it.

Triggers note what a look from outside, between two steps, could miss.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from sqlalchemy import Connection, Engine, text

from models.engine import current
from models.engine.step import Context
from models.ledger import sums
from models.ledger.claims import MAX_LEASE_EXPIRIES, scope_of
from models.ledger.tables import BATCH_TRANSITIONS, RECONCILIATION, RUN_TRANSITIONS, VERIFICATION
from models.settings import Settings

Covered = tuple[str, str, str, str, str | None]
"""Run, stage, step, a key, and the key of the one row that hangs on it (none: all of them)."""

INSTALL = """
CREATE SCHEMA observed;
CREATE TABLE observed.moves (
  id bigint GENERATED ALWAYS AS IDENTITY, kind text, subject text, before text, after text,
  attempts_fell boolean DEFAULT false, hindrance text);

CREATE FUNCTION observed.stage_before(run text, stage text) RETURNS text LANGUAGE sql AS $$
  SELECT 'stage ' || min(earlier.name) || ' is open'
  FROM migration.stages mine JOIN migration.stages earlier USING (run_id, direction)
  WHERE mine.run_id = run AND mine.name = stage AND earlier.position < mine.position
    AND earlier.state <> 'done'
$$;
CREATE FUNCTION observed.batch_in(run text, stage_name text, states text[]) RETURNS text
LANGUAGE sql AS $$
  SELECT 'batch ' || min(id) || ' is ' || min(state) FROM migration.batches
  WHERE run_id = run AND stage = coalesce(stage_name, stage) AND state = ANY (states)
$$;

CREATE FUNCTION observed.note_batch() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE hindrance text;
BEGIN
  IF NEW.state = 'running' THEN
    SELECT 'the run is ' || state INTO hindrance FROM migration.runs
    WHERE id = NEW.run_id AND state NOT IN ('preparing', 'running');
    hindrance := coalesce(hindrance, observed.stage_before(NEW.run_id, NEW.stage));
    IF NEW.attempt <= OLD.attempt THEN hindrance := 'the attempt is the old one'; END IF;
  END IF;
  INSERT INTO observed.moves (kind, subject, before, after, attempts_fell, hindrance)
  VALUES ('batch', NEW.id, OLD.state, NEW.state, NEW.attempt < OLD.attempt, hindrance);
  RETURN NULL;
END $$;
CREATE FUNCTION observed.note_stage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO observed.moves (kind, subject, hindrance) VALUES ('stage', NEW.name, coalesce(
    observed.stage_before(NEW.run_id, NEW.name),
    observed.batch_in(NEW.run_id, NEW.name, '{pending,running,failed}')));
  RETURN NULL;
END $$;
CREATE FUNCTION observed.note_run() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE hindrance text;
BEGIN
  IF NEW.state LIKE 'completed%' THEN
    SELECT 'stage ' || min(name) || ' is not done' INTO hindrance FROM migration.stages
    WHERE run_id = NEW.id AND state <> 'done';
    hindrance := coalesce(hindrance,
      observed.batch_in(NEW.id, NULL, '{pending,running,failed}'),
      (SELECT 'differs: ' || min(kind) FROM migration.differences WHERE run_id = NEW.id));
  END IF;
  INSERT INTO observed.moves (kind, subject, before, after, hindrance)
  VALUES ('run', NEW.id, OLD.state, NEW.state, hindrance);
  RETURN NULL;
END $$;

-- Every row, and every trigger that captures.
CREATE FUNCTION observed.digest() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  name text;
  hash text;
  hashes text := '';
BEGIN
  FOR name IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
    WHERE schemaname IN ('public', 'migration') ORDER BY 1
  LOOP
    EXECUTE format('SELECT md5(string_agg(t::text, '','' ORDER BY t::text)) FROM %s t', name)
    INTO hash;
    hashes := concat(hashes, name, ' ', hash, chr(10));
  END LOOP;
  RETURN hashes || (SELECT coalesce(string_agg(tgname, ' ' ORDER BY tgrelid, tgname), '')
    FROM pg_trigger WHERE tgname LIKE 'migration%');
END $$;

CREATE TRIGGER observed AFTER UPDATE ON migration.batches FOR EACH ROW
WHEN ((OLD.state, OLD.attempt) IS DISTINCT FROM (NEW.state, NEW.attempt))
EXECUTE FUNCTION observed.note_batch();
CREATE TRIGGER observed AFTER UPDATE ON migration.stages FOR EACH ROW
WHEN (NEW.state = 'done' AND OLD.state <> 'done') EXECUTE FUNCTION observed.note_stage();
CREATE TRIGGER observed AFTER UPDATE ON migration.runs FOR EACH ROW
WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION observed.note_run();
"""

# All that a scan of the batches adds up, and the sums with what is behind them: row by row, and by
# each number that was counted.
_SAME = """
WITH RECURSIVE scan AS (
  SELECT b.stage, b.step, b.state, b.window = 0 AS is_again, 1 AS batches, b.rows,
    extract(epoch FROM b.finished_at - b.started_at)::float AS seconds, b.attempt AS attempts,
    b.expiries, b.republished, NULL::jsonb AS durations, b.counts
  FROM migration.batches b WHERE b.run_id = :of_run
), both_ways AS (
  SELECT 1 AS way, * FROM scan UNION ALL
  SELECT -1, stage, step, state, is_again, batches, rows, seconds, attempts, expiries, republished,
    durations, counts FROM ({totals}) AS t
), numbers AS (
  SELECT way, stage, step, state, is_again, e.key AS name, e.value
  FROM both_ways, jsonb_each(counts) AS e
  UNION ALL
  SELECT way, stage, step, state, is_again, n.name || '.' || e.key, e.value
  FROM numbers n, jsonb_each(CASE jsonb_typeof(n.value) WHEN 'object' THEN n.value END) AS e
)
SELECT concat_ws(' ', stage, step, state, is_again, 'batches') FROM both_ways
GROUP BY stage, step, state, is_again
HAVING (sum(way * batches), sum(way * rows), sum(way * attempts), sum(way * expiries),
  sum(way * republished), round(sum(way * coalesce(seconds, 0))::numeric, 3),
  sum(way * coalesce((durations ->> '0.25')::int, (seconds <= 0.25)::int, 0)))
  <> (0, 0, 0, 0, 0, 0, 0)
UNION ALL
SELECT concat_ws(' ', stage, step, state, is_again, name) FROM numbers
WHERE jsonb_typeof(value) IN ('number', 'string')
GROUP BY stage, step, state, is_again, name HAVING sum(way * (value #>> '{{}}')::numeric) <> 0
"""
_TAKE = """
DELETE FROM observed.moves RETURNING kind, subject, before, after, attempts_fell, hindrance
"""
_REASON = "SELECT reason FROM migration.quarantine WHERE batch_id = :batch AND legacy_key = :key"
_WRONG = """
SELECT 'open runs: ' || count(*) FROM migration.runs
  WHERE state IN ('preparing', 'running', 'paused') HAVING count(*) > 1
UNION ALL SELECT 'stage ' || s.name || ' is done, batch ' || b.id || ' is ' || b.state
  FROM migration.stages s JOIN migration.batches b ON b.run_id = s.run_id AND b.stage = s.name
  WHERE s.state = 'done' AND b.state IN ('pending', 'running', 'failed')
UNION ALL SELECT 'run ' || r.id || ' is ' || r.state || ', batch ' || b.id || ' ' || b.state
  FROM migration.runs r JOIN migration.batches b ON b.run_id = r.id
  WHERE r.state LIKE 'completed%' AND b.state IN ('pending', 'running', 'failed')
UNION ALL SELECT 'run ' || r.id || ' is ' || r.state || ' with a difference: ' || d.kind
  FROM migration.runs r JOIN migration.differences d ON d.run_id = r.id
  WHERE r.state LIKE 'completed%'
UNION ALL SELECT 'batch ' || id || ' is running without a lease' FROM migration.batches
  WHERE (state = 'running') <> (lease_until IS NOT NULL)
UNION ALL SELECT 'balance of ' || u.id || ' is not its log' FROM users u
  JOIN (SELECT user_id, sum(amount) FROM credit_logs GROUP BY 1) l ON l.user_id = u.id
  WHERE u.credits_balance IS DISTINCT FROM l.sum
"""


def digest(engine: Engine) -> str:
    """A value that changes with any row of the application or the ledger."""
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT observed.digest()")))


def wrong_sums(connection: Connection) -> list[str]:
    """What the sums of the stages, with the batches behind them, count otherwise than a scan."""
    same = text(_SAME.format(totals=sums.BATCH_TOTALS))
    found = connection.scalars(text("SELECT id FROM migration.runs")).all()
    return [f"{run} {row}" for run in found for row in connection.scalars(same, {"of_run": run})]


class Watch:
    """Holds the ledger against what must be so, as often as it is asked."""

    # What all examples together have seen: kind, state before, state after.
    seen: ClassVar[Counter[tuple[str, str, str]]] = Counter()

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        with engine.connect() as connection:
            self._batches = _batches(connection)

    def check(self, *, is_retry: bool = False) -> None:
        """Assert that nothing went wrong since the last check; a retry inserts suspects itself."""
        with self._engine.begin() as connection:
            moves = connection.execute(text(_TAKE)).all()
            for move in moves:
                assert move.hindrance is None, move
                assert not move.attempts_fell, move
                if move.kind != "stage":
                    allowed = RUN_TRANSITIONS if move.kind == "run" else BATCH_TRANSITIONS
                    assert (move.before, move.after) in allowed, move
                    self.seen[move.kind, move.before, move.after] += 1
            assert connection.scalars(text(_WRONG)).all() == []
            assert wrong_sums(connection) == []
            before, self._batches = self._batches, _batches(connection)
            if not is_retry:
                self._check_splits(connection, before)

    def _check_splits(self, connection: Connection, before: dict[int, Any]) -> None:
        """What was split is covered by what came for it: no key lost, and none twice."""
        wanted, found = Counter[Covered](), Counter[Covered]()
        for id_, row in self._batches.items():
            if id_ not in before and row["lapses"] == MAX_LEASE_EXPIRIES - 1:
                found.update(_covers(row, row["key_list"]))
            if id_ in before and before[id_]["state"] == row["state"]:
                continue
            if row["state"] == "split" or (row["state"], row["part_list"]) == ("done", []):
                wanted.update(self._must_cover(connection, row))
            elif row["state"] == "quarantined":
                # A page of a range may hold one row of its step, or none.
                context = self._context(connection, row)
                named = row["part_list"] or current.migration().step(row["step"]).keys_in(
                    context, scope_of(row)
                )
                for key in named[:1]:
                    reason = connection.scalar(text(_REASON), {"batch": id_, "key": key})
                    assert reason == "worker_died", (row, reason)
        assert found == wanted, (found - wanted, wanted - found)

    def _context(self, connection: Connection, row: Any) -> Context:
        run = text("SELECT * FROM migration.runs WHERE id = :id")
        found = connection.execute(run, {"id": row["run_id"]}).one()
        return Context.read(connection, self._settings, found)

    def _must_cover(self, connection: Connection, row: Any) -> list[Covered]:
        context = self._context(connection, row)
        step, scope = current.migration().step(row["step"]), scope_of(row)
        keys = step.keys_in(context, scope)
        place = (row["run_id"], row["stage"], row["step"])
        if len(keys) > 1 or row["stage"] in (VERIFICATION, RECONCILIATION):
            return [(*place, key, None) for key in keys]
        if row["state"] == "split" and scope.parts is None:
            return [(*place, keys[0], "")]
        parts = scope.parts or step.part_keys_in(context, scope)
        return [(*place, keys[0], part) for part in parts]


def _covers(row: Any, keys: list[str]) -> list[Covered]:
    place = (row["run_id"], row["stage"], row["step"])
    parts = [None] if row["part_list"] is None else row["part_list"] or [""]
    return [(*place, key, part) for key in keys for part in parts]


def _batches(connection: Connection) -> dict[int, Any]:
    found = connection.execute(text("SELECT * FROM migration.batches")).mappings()
    return {row["id"]: row for row in found}
