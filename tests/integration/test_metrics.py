"""What Prometheus reads is what the ledger holds, whatever else was lost or restarted."""

from __future__ import annotations

from contextlib import closing

import pytest
import redis
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine

from models.ledger import claims
from models.settings import Settings
from producer import embedded
from producer.reports import metrics, status
from producer.runs import advance, reconciler
from tests.driving import change, go_on, scalar, spent, start

USERS, BATCH_SIZE = 600, 50
Samples = dict[tuple[str, ...], float]


def scrape(engine: Engine) -> Samples:
    """Name and label values, in the order of the labels' names, to the value."""
    text = generate_latest(metrics.registry(engine)).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.usefixtures("bare")
def test_before_the_first_run_and_without_a_database_it_says_just_that(
    engine: Engine, settings: Settings, database: str
) -> None:
    assert scrape(engine) == {("migration_ledger_up",): 1}
    from models.postgres import database as databases

    nowhere = databases.create("postgresql://nobody@127.0.0.1:1/nowhere")
    assert scrape(nowhere) == {("migration_ledger_up",): 0}


def test_every_figure_is_the_ledgers_and_outlives_a_flush_of_redis(
    engine: Engine, settings: Settings, servers: embedded.Servers
) -> None:
    run_id = start(engine, settings)
    found = go_on(engine, settings, run_id)
    seen = scrape(engine)
    assert seen["migration_run_info", run_id, "completed_with_quarantine"] == 1
    for entity in ("users", "subscriptions", "projects"):
        assert seen["migration_legacy_rows", entity, "total"] == scalar(
            engine,
            f"SELECT count(*) FROM {'gpt_' if entity == 'subscriptions' else ''}{entity}",
        )
    assert (
        seen["migration_legacy_rows", "users", "quarantined"]
        == found.entities["users"].quarantined
        > 0
    )
    assert seen["migration_rows_written", "ai_tools"] == scalar(
        engine, "SELECT count(*) FROM ai_tools"
    )
    assert sum(v for k, v in seen.items() if k[0] == "migration_quarantined_rows") == scalar(
        engine, "SELECT count(*) FROM migration.quarantine WHERE state = 'open'"
    )
    done = "SELECT count(*) FROM migration.batches WHERE state = 'done'"
    for stage in (stage.name for stage in found.stages):
        mine = scalar(engine, f"{done} AND stage = '{stage}'")
        assert seen["migration_batches", stage, "done"] == mine > 0
        assert seen["migration_batch_seconds_bucket", "+Inf", stage] == mine
        assert seen["migration_batch_attempts_total", stage] == mine
        slow = f"{done} AND stage = '{stage}' AND finished_at - started_at > interval '0.25 s'"
        assert seen["migration_batch_seconds_bucket", "0.25", stage] == mine - scalar(engine, slow)
    rows = scalar(
        engine, "SELECT sum(rows) FROM migration.batches WHERE step = 'users' AND stage = step"
    )
    assert seen["migration_rows_per_second", "users"] == pytest.approx(rows / 60)
    with closing(redis.Redis.from_url(servers.redis_url)) as client:
        client.flushdb()
    again = scrape(engine)
    moving = {("migration_last_batch_age_seconds",)}
    assert {k: v for k, v in again.items() if k not in moving} == {
        k: v for k, v in seen.items() if k not in moving
    }


def test_what_waits_what_ran_out_and_what_was_set_right_is_counted(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    change(engine, "UPDATE migration.batches SET published_at = now() - interval '1 day'")
    waiting = scrape(engine)
    queue = "migration.control"
    assert waiting["migration_queue_batches", queue] == 1
    assert waiting["migration_queue_oldest_seconds", queue] == pytest.approx(86_400, rel=0.1)
    batch_id = scalar(engine, "SELECT id FROM migration.batches")
    with engine.begin() as connection:
        assert claims.claim(connection, run_id, batch_id, "dead")
    assert scrape(engine)["migration_queue_batches", queue] == 0
    late = "UPDATE migration.batches SET lease_until = now() - interval '1 s'"
    change(engine, late)
    expired = scrape(engine)
    assert expired["migration_batches", "organization", "expired"] == 1
    assert expired["migration_batches", "organization", "running"] == 0
    reconciler.tick(engine, settings)
    with engine.begin() as connection:
        assert claims.claim(connection, run_id, batch_id, "dead too")
    change(engine, late, "UPDATE migration.runs SET throttled_by = 'x', throttled_at = now()")
    with engine.begin() as connection:
        assert claims.claim(connection, run_id, batch_id, "alive")
    seen = scrape(engine)
    assert seen["migration_batch_expiries_total", "organization"] == 2
    assert seen["migration_batch_attempts_total", "organization"] == 3
    assert seen["migration_reconciler_actions_total", "published_again"] == 1
    assert seen["migration_batches", "organization", "running"] == 1
    assert seen["migration_throttled",] == 1


def test_a_retry_forgets_lapses_but_no_counter_goes_back(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    go_on(engine, settings, run_id)
    change(
        engine,
        "UPDATE migration.batches SET expiries = 2, lapses = 2, state = 'failed' WHERE id ="
        " (SELECT min(id) FROM migration.batches WHERE stage = 'users')",
        "UPDATE migration.runs SET state = 'failed'",
    )
    from producer.runs import control

    control.retry(engine, settings, run_id)
    assert scalar(engine, "SELECT sum(lapses) FROM migration.batches WHERE stage = 'users'") == 0
    assert scrape(engine)["migration_batch_expiries_total", "users"] == 2


def test_with_ten_thousand_batches_a_scrape_sends_and_reads_no_more_than_with_none(
    engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    with spent(engine) as few:
        scrape(engine)
    change(
        engine,
        "INSERT INTO migration.batches (run_id, stage, step, window, rows, state, attempt,"
        " published_at, started_at, finished_at, counts) SELECT id, 'users', 'users', n / 64, 100,"
        " 'done', 1, now(), now() - interval '2 s', now(), jsonb_build_object('rows',"
        " jsonb_build_object('ai_suites', 100, 'ai_tools', 300, 'tool_assignments', 300,"
        " 'tool_usage_logs', 300), 'users', '{\"total\": 100, \"quarantined\": 1}'::jsonb,"
        " 'subscriptions', '{\"total\": 300, \"quarantined\": 3}'::jsonb,"
        " 'credits_granted', '10000.00')"
        " FROM migration.runs, generate_series(1, 10000) AS n".replace("window,", '"window",'),
        "ANALYZE migration.batches",
    )
    assert status.read(engine, run_id).rows["ai_tools"] == 3_000_000
    with spent(engine) as many:
        seen = scrape(engine)
    assert seen["migration_batches", "users", "done"] == 10_000
    assert many.statements == few.statements
    # The database counts: what it sends is a row a stage, or a state.
    assert many.rows < few.rows + 20
