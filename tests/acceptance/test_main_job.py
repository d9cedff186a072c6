"""The main job under what an ordinary night brings: repetition, kills, fixed data, no worker."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from decimal import Decimal

import pytest
from sqlalchemy import text

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import oracle, variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, batches, count, kill_group, said
from tests.wait import until

USERS = 300
NAMES = oracle.Names()
GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)
TARGETS = (*oracle.TARGETS, "users", "gpt_subscriptions", "projects")


@pytest.fixture
def before(product: Product) -> oracle.Snapshot:
    """The plain sample, loaded; as it was before any run."""
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
        return oracle.snapshot(connection, NAMES)


def target_hashes(product: Product) -> dict[str, str]:
    """A hash of every row of every table that the migration writes."""
    with product.engine.connect() as connection:
        return {
            name: hashlib.sha256(
                "\n".join(
                    connection.scalars(text(f"SELECT t::text FROM {name} t ORDER BY t::text"))
                ).encode()
            ).hexdigest()
            for name in TARGETS
        }


def assert_right(product: Product, before: oracle.Snapshot) -> None:
    """Every legacy row accounted for exactly once, every balance equal to its log."""
    with product.engine.connect() as connection:
        assert oracle.compare(connection, before, oracle.expected(before, GRANTS)) == []
    assert batches(product, "pending") + batches(product, "running") == 0


def test_a_second_run_changes_no_row_and_reports_nothing_written(
    product: Product, before: oracle.Snapshot
) -> None:
    product.is_installed = True
    with product.worker():
        first = product.run("enqueue-all", "--wait", "--json")
        hashes = target_hashes(product)
        second = product.run("enqueue-all", "--wait", "--json")
    assert target_hashes(product) == hashes
    assert first.json["run_id"] != second.json["run_id"]
    for name in ("users", "subscriptions", "projects"):
        assert first.json[name] == second.json[name]
    assert set(second.json["rows"].values()) == {0}
    assert (second.json["credits_granted"], second.status) == ("0.00", 3)
    assert_right(product, before)


def test_two_producers_at_the_same_moment_share_one_run(
    product: Product, before: oracle.Snapshot
) -> None:
    with product.worker():
        pair = [product.start("enqueue-all", "--wait", "--json") for _ in range(2)]
        ended = [process.communicate(timeout=COMMAND_SECONDS) for process in pair]
    assert [process.returncode for process in pair] == [3, 3], ended
    assert count(product, "SELECT count(*) FROM migration.runs") == 1
    assert "joined" in ended[0][1] + ended[1][1]
    assert_right(product, before)


@pytest.mark.long
def test_workers_that_come_late_stop_or_are_killed_cost_time_and_nothing_else(
    product: Product, before: oracle.Snapshot
) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "10"
    waiting = product.start("enqueue-all", "--wait", "--json")
    said(waiting, "No worker is running")
    with product.worker() as first:
        until(lambda: batches(product, "done") >= 5)
        first.send_signal(signal.SIGTERM)
        first.wait(30)
    # It has finished its batches.
    assert batches(product, "running") == 0
    stopped = batches(product, "done")
    with product.worker() as second:
        until(lambda: batches(product, "done") >= stopped + 5)
        kill_group(second)
    killed = batches(product, "done")
    with product.worker():
        out, err = waiting.communicate(timeout=COMMAND_SECONDS)
    assert waiting.returncode == 3, err
    assert 10 <= killed < batches(product, "done"), out
    assert_right(product, before)


def test_chords_move_a_run_from_window_to_window(product: Product, before: oracle.Snapshot) -> None:
    ended = "SELECT count(*) FROM migration.runs WHERE finished_at IS NOT NULL"
    with product.worker("--loglevel=INFO"):
        product.run("enqueue-all", "--json")
        until(lambda: count(product, ended))
    log = (product.folder / "celery-0.log").read_text()
    # Every window but the first was opened by a chord's body: the reconciler had nothing to do.
    bodies = log.count("Task migration.advance[")
    windows = 'SELECT count(DISTINCT (stage, "window", step)) FROM migration.batches'
    assert bodies >= count(product, windows)
    assert "published again" not in log
    assert_right(product, before)


def fix(product: Product) -> None:
    """Fix what can be fixed in the legacy tables, by the reasons in the quarantine."""
    with product.engine.begin() as connection:
        for reason, statement in (
            ("email_blank", "UPDATE users SET email = id || '@fixed.example'"),
            ("gpt_id_blank", "UPDATE gpt_subscriptions SET gpt_id = 'fixed'"),
            ("preferences%", "UPDATE gpt_subscriptions SET preferences = '{}'"),
            ("owner_missing", "DELETE FROM gpt_subscriptions"),
        ):
            connection.execute(
                text(
                    f"{statement} WHERE id IN (SELECT legacy_key FROM migration.quarantine"
                    " WHERE reason LIKE :reason AND state = 'open')"
                ),
                {"reason": reason},
            )


@pytest.mark.long
def test_fixed_rows_and_only_those_migrate_with_a_retry(
    product: Product, before: oracle.Snapshot
) -> None:
    with product.worker():
        assert product.run("enqueue-all", "--wait", "--json").status == 3
        rows = product.run("quarantine", "--json").json["rows"]
        fix(product)
        product.run("retry", "--wait", "--json")
        # A subscription that came back with its owner may be bad itself: once more.
        fix(product)
        still = product.run("retry", "--wait", "--json")
        # What is left are the projects whose owner never comes back: accept them.
        left = product.run("quarantine", "--json").json["rows"]
        assert {row["reason"] for row in left} == {"owner_missing"}, left
        keys = [row["key"] for row in left]
        accepted = product.run("quarantine", "--accept", *keys, "--json")
        ended = product.run("retry", "--wait", "--json")
    assert {row["reason"] for row in rows} > {"email_blank", "owner_quarantined", "gpt_id_blank"}
    assert (still.status, accepted.json["accepted"], ended.status) == (3, len(keys), 0)
    assert ended.json["state"] == "completed"
    assert ended.json["projects"]["quarantined"] == len(keys)
    with product.engine.connect() as connection:
        assert oracle.compare_now(connection, before, GRANTS) == []
        nullable = connection.scalar(
            text(
                "SELECT count(*) FROM information_schema.columns WHERE table_name = 'users'"
                " AND column_name = 'user_type' AND is_nullable = 'YES'"
            )
        )
    assert nullable == 0


@pytest.mark.long
def test_rows_that_are_deleted_leave_the_totals(product: Product, before: oracle.Snapshot) -> None:
    with product.worker():
        product.run("enqueue-all", "--wait", "--json")
        with product.engine.begin() as connection:
            for entity, table in (
                ("user", "users"),
                ("subscription", "gpt_subscriptions"),
                ("project", "projects"),
            ):
                connection.execute(
                    text(
                        f"DELETE FROM {table} WHERE id IN (SELECT legacy_key"
                        " FROM migration.quarantine WHERE entity = :entity)"
                    ),
                    {"entity": entity},
                )
        ended = product.run("retry", "--wait", "--json")
    assert (ended.status, ended.json["state"]) == (0, "completed")
    totals = {name: len(before.rows(name)) for name in ("users", "subscriptions", "projects")}
    for name, total in totals.items():
        standing = ended.json[name]
        assert standing["quarantined"] == 0
        assert standing["total"] == standing["migrated"] < total


@pytest.mark.long
def test_a_paused_run_starts_nothing_until_it_is_resumed(
    product: Product, before: oracle.Snapshot
) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "10"
    product.run("enqueue-all", "--json")
    last = "SELECT FROM users WHERE id IN (SELECT id FROM users ORDER BY id DESC LIMIT 10)"
    with product.engine.connect() as application, product.worker():
        # The run cannot end before it is paused: its last users are locked until then.
        application.execute(text(f"{last} FOR UPDATE"))
        until(lambda: batches(product, "done") >= 5)
        assert product.run("pause", "--json").json["state"] == "paused"
        application.rollback()
        until(lambda: batches(product, "running") == 0)
        done = batches(product, "done")
        commands = (("enqueue-all", "--wait", "--json"), ("status", "--watch", "--json"))
        waiting = [product.start(*command) for command in commands]
        for process in waiting:
            line = said(process, "is paused by")
            assert re.search(r"by \S+ from \S+ at \d\d:\d\d\. .*producer resume", line), line
            assert "Ctrl-C" in line
        assert (batches(product, "done"), *(each.poll() for each in waiting)) == (done, None, None)
        product.run("resume", "--json")
        for process in waiting:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 3, err
            assert json.loads(out)["paused_by"] is None
    assert_right(product, before)


def test_a_run_that_is_cancelled_in_a_pause_ends_the_wait(
    product: Product, before: oracle.Snapshot
) -> None:
    waiting = product.start("enqueue-all", "--wait", "--json")
    said(waiting, "Run ")
    product.run("pause", "--json")
    said(waiting, "is paused by")
    product.run("cancel", "--yes", "--json")
    out, err = waiting.communicate(timeout=120)
    assert (waiting.returncode, json.loads(out)["state"]) == (1, "cancelled"), err
