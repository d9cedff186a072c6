"""Rows that only the database can refuse: bisected down to the row, and the rest goes through."""

from __future__ import annotations

from decimal import Decimal

import pytest
from sqlalchemy import text

from models.settings import DEFAULT_GRANTS, parse_grants
from tests import variants
from tests.acceptance.conftest import Product, count
from tests.wait import until

GRANTS: dict[str, Decimal] = parse_grants(DEFAULT_GRANTS)


@pytest.mark.long
def test_a_trigger_that_raises_costs_one_row_each(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 400)
    product.run("schema", "upgrade")
    with product.engine.begin() as connection:
        clean = "SELECT s.user_id, s.id FROM gpt_subscriptions s JOIN users u ON u.id = s.user_id"
        picked = connection.execute(
            text(
                f"{clean} WHERE s.gpt_id <> '' AND u.email LIKE '%@%'"
                " AND s.preferences::text LIKE '{%rate_limit%}' ORDER BY s.user_id, s.id"
            )
        ).all()
        bad_user, bad_subscription = picked[0].user_id, picked[-1].id
        bad_project = connection.scalar(
            text(
                "SELECT max(id) FROM projects WHERE active_gpt_id ~ '[a-z]'"
                " AND user_id IN (SELECT id FROM users WHERE email LIKE '%@%')"
            )
        )
        hanging = connection.scalar(
            text("SELECT count(*) FROM gpt_subscriptions WHERE user_id = :user"), {"user": bad_user}
        )
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'a secret of the row: %%', NEW; END $$"
        )
        for table, key in (
            ("ai_suites", f"s-{bad_user}"),
            ("ai_tools", f"t-{bad_subscription}"),
            ("ai_tools", f"p-{bad_project}"),
        ):
            connection.exec_driver_sql(
                f'CREATE TRIGGER "refuse {key}" BEFORE INSERT ON {table} FOR EACH ROW'
                f" WHEN (NEW.id = '{key}') EXECUTE FUNCTION refuse()"
            )
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
        rows = {row["key"]: row for row in product.run("quarantine", "--json").json["rows"]}
        assert ended.status == 3, ended.err
        for key in (bad_user, bad_subscription, bad_project):
            assert rows[key]["reason"] == "rejected"
            assert "P0001" in rows[key]["message"]
            assert "secret" not in rows[key]["message"]
        rejected = [row for row in rows.values() if row["reason"] == "rejected"]
        assert len(rejected) == 3
        hung = [row for row in rows.values() if "owner" in row["reason"]]
        assert len(hung) > hanging
        with product.engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION refuse() CASCADE")
        product.run("retry", "--wait", "--json")
        rows = {row["key"]: row for row in product.run("quarantine", "--json").json["rows"]}
    assert not {bad_user, bad_subscription, bad_project} & set(rows)


def test_a_balance_that_cannot_hold_the_grant_costs_one_user(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.ADOPTED.build(connection, 200)
        user = connection.scalar(text("SELECT min(id) FROM users WHERE email LIKE '%@%'"))
        connection.execute(
            text("UPDATE users SET credits_balance = 99999999.99 WHERE id = :user"), {"user": user}
        )
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
        rows = {row["key"]: row for row in product.run("quarantine", "--json").json["rows"]}
    assert ended.status == 3, ended.err
    assert rows[user]["reason"] == "rejected" and "22003" in rows[user]["message"]
    assert ended.json["reconciliation"]["discrepancies"] == 0


@pytest.mark.long
def test_a_table_that_refuses_all_rows_pauses_the_run_and_says_so_as_it_happens(
    product: Product,
) -> None:
    product.environment["MIGRATION_BATCH_SIZE"] = "30"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 600)
    # Opened before the trigger is there: what is there before is found by the trial.
    product.run("enqueue-all")
    with product.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'a secret'; END $$;"
            " CREATE TRIGGER refuse BEFORE INSERT ON ai_suites FOR EACH ROW"
            " EXECUTE FUNCTION refuse()"
        )
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json", MIGRATION_ERROR_BUDGET="3")
        assert (ended.status, ended.json["state"]) == (1, "paused"), ended.err
        assert ended.json["error"]["kind"] == "error_budget"
        assert ended.json["paused_by"] == "error budget"
        assert "Failed: " in ended.err and "secret" not in ended.err + ended.out
        assert "producer retry --wait" in ended.err
        # Whoever joins it now is told the same.
        again = product.run("status", "--watch", "--json")
        assert (again.status, again.json["error"]) == (1, ended.json["error"])
        # One that is under way would find its rows refused and then let through.
        under_way = "SELECT count(*) FROM migration.batches WHERE state = 'running'"
        until(lambda: count(product, under_way) == 0, "a batch is under way")
        with product.engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION refuse() CASCADE")
        fixed = product.run("retry", "--wait", "--json")
    assert fixed.status == 3, fixed.err
    assert "rejected" not in fixed.json["quarantine"]
