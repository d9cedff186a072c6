"""A hundred bad rows of five kinds among the users, two of which kill whoever touches them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Engine, text

from tests.soak.site import Site, finish, load, rows, verdict, workers

APP = "tests.soak.deadly"
# Kind, how many, and what the quarantine must say.
KINDS = {"blank": 40, "constraint": 25, "trigger": 25, "timeout": 8, "deadly": 2}
REASONS = {"blank": "email_blank", "deadly": "worker_died"}


def run(site: Site, users: int) -> dict[str, Any]:
    """Migrate `users` users of whom a hundred are poison; then fix them, and retry."""
    engine = site.fresh("poison")
    before = load(engine, users, dirty=False)
    poison = _plant(engine, users)
    with workers(site, 2, APP):
        started = time.monotonic()
        first = finish(site.producer("enqueue-all", "--wait", "--json"))
        seconds = time.monotonic() - started
        quarantined = rows(
            engine, "SELECT entity, legacy_key, reason, attempts, message FROM migration.quarantine"
        )
        sent = rows(
            engine,
            "SELECT coalesce(sum((counts #>> '{bisected,statements}')::int), 0) AS bisected,"
            " count(*) FILTER (WHERE state = 'split') AS split, sum(lapses) AS lapses"
            " FROM migration.batches",
        )[0]
        last = rows(engine, "SELECT max(id) FROM migration.batches")[0][0]
        _fix(engine)
        second = finish(site.producer("retry", "--wait", "--json"))
    retried = rows(
        engine,
        "SELECT count(DISTINCT key) FROM migration.batches, unnest(key_list) AS key"
        f" WHERE id > {last} AND stage = 'users' AND step = 'users'",
    )[0][0]
    wrong = verdict(engine, before)
    engine.dispose()
    named = {row.legacy_key: row for row in quarantined if row.entity == "user"}
    return {
        "users": users,
        "exit_status": first["exit_status"],
        "seconds": round(seconds, 1),
        "migrated": first["users"]["migrated"],
        "quarantined": len(quarantined),
        "quarantined_as_planted": sum(
            key in named and named[key].reason == REASONS.get(kind, "rejected")
            and named[key].attempts >= 1 and bool(named[key].message)
            for key, kind in poison.items()
        ),
        "statements_of_bisection": int(sent.bisected),
        "batches_split": sent.split,
        "retry_exit_status": second["exit_status"],
        "retry_touched": retried,
        "wrong_rows": len(wrong),
        "first_wrong_rows": wrong[:5],
    }  # fmt: skip


def _plant(engine: Engine, users: int) -> dict[str, str]:
    """Choose the rows at even distances, leave them alone in the world, and make them poison."""
    count = sum(KINDS.values())
    kinds = [kind for kind, many in KINDS.items() for _ in range(many)]
    with engine.begin() as connection:
        keys = list(
            connection.scalars(
                text(
                    "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM users) u"
                    " WHERE n % :step = :step / 2 ORDER BY md5(id) LIMIT :count"
                ),
                {"step": users // count, "count": count},
            )
        )
        poison = dict(zip(keys, kinds, strict=True))
        for table in ("gpt_subscriptions", "projects"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE user_id = ANY(:keys)"), {"keys": keys}
            )
        connection.exec_driver_sql("CREATE TABLE poison (key text PRIMARY KEY, kind text)")
        connection.execute(
            text("INSERT INTO poison SELECT * FROM unnest(:keys, :kinds)"),
            {"keys": list(poison), "kinds": list(poison.values())},
        )
        connection.exec_driver_sql(
            "UPDATE users SET email = repeat(' ', length(id) + (SELECT count(*)::int FROM poison p"
            " WHERE p.key < users.id)) WHERE id IN (SELECT key FROM poison WHERE kind = 'blank')"
        )
        connection.exec_driver_sql(_SLOW_AND_RAISING)
    return poison


# The tables that the triggers stand on are the product's: they are made as it makes them.
_SLOW_AND_RAISING = """
CREATE FUNCTION bite() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE kind text;
BEGIN
  SELECT p.kind INTO kind FROM public.poison p WHERE 's-' || p.key = NEW.id;
  IF kind = 'trigger' THEN RAISE EXCEPTION 'no'; END IF;
  IF kind = 'constraint' THEN NEW.name := NULL; END IF;
  IF kind = 'timeout' THEN PERFORM pg_sleep(600); END IF;
  RETURN NEW;
END $$;
CREATE TABLE ai_suites (
  id varchar PRIMARY KEY, user_id varchar NOT NULL, name varchar NOT NULL, description varchar,
  configuration jsonb DEFAULT '{}', is_active boolean DEFAULT true,
  created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TRIGGER bite BEFORE INSERT ON ai_suites FOR EACH ROW EXECUTE FUNCTION bite();
"""


def _fix(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE users SET email = id || '@fixed.example' WHERE email !~ '@';"
            "DROP TRIGGER bite ON ai_suites; DELETE FROM poison"
        )
