"""A migration from outside the tree, by docs/your-own-migration.md, with real workers."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from tests.acceptance.conftest import Product, batches
from tests.wait import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-own-migration.md").read_text(encoding="utf-8")
BEGIN, STEP, RUN = re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL)


def scalar(product: Product, query: str) -> object:
    with product.engine.connect() as connection:
        return connection.scalar(text(query))


def change(product: Product, *statements: str) -> None:
    with product.engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))


def write_package(product: Product) -> Path:
    """The package that `producer new` writes, in the path of all commands and workers."""
    written = product.run("new", "badges", "--json")
    assert written.status == 0, written.err
    folder = product.folder / "badges"
    # From here on as users start them: the package is in their path.
    product.is_installed = True
    assert str(folder / "badges_migration" / "__init__.py") in [
        str(product.folder / path) for path in written.json["files"]
    ]
    product.environment["PYTHONPATH"] = f"{folder}:{ROOT}"
    product.environment["MIGRATION"] = "badges_migration:MIGRATION"
    return folder


@pytest.mark.long
def test_a_package_that_was_just_written_passes_its_own_test(product: Product) -> None:
    assert BEGIN.split("\n")[0] == "producer new badges"
    folder = write_package(product)
    environment = {
        name: value
        for name, value in product.environment.items()
        if name not in ("DATABASE_URL", "REDIS_URL", "MIGRATION_HOME", "MIGRATION")
    }
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout[-4000:]


def test_a_folder_that_is_there_is_left_alone(product: Product) -> None:
    write_package(product)
    again = product.run("new", "badges")
    assert (again.status, "is there already" in again.err) == (2, True), again.err
    wrong = product.run("new", "My Table")
    assert (wrong.status, "cannot be the name" in wrong.err) == (2, True), wrong.err


@pytest.mark.long
def test_every_command_works_for_the_step_of_the_page_with_live_writes_a_kill_and_a_flush(
    product: Product,
) -> None:
    folder = write_package(product)
    (folder / "badges_migration" / "__init__.py").write_text(STEP)
    change(product, (folder / "tables.sql").read_text())
    change(
        product,
        "INSERT INTO badges SELECT n, 'name ' || n FROM generate_series(1001, 5000) AS n",
        # A row that the database refuses: bisected, and quarantined alone.
        "ALTER TABLE new_badges ADD CHECK (title <> 'NAME 777')",
    )
    commands = [line.split()[1:] for line in RUN.splitlines() if line.startswith("producer")]
    assert [command[0] for command in commands] == ["check", "schema", "plan", "enqueue-all"]
    for command in commands[:3]:
        done = product.run(*command, "--json")
        assert done.status == 0, done.err
    product.environment["MIGRATION_BATCH_SIZE"] = "200"
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker() as doomed:
        until(lambda: batches(product, "done") > 5, "no batch is done")
        change(
            product,
            "UPDATE badges SET name = 'changed' WHERE id = 7",
            "DELETE FROM badges WHERE id = 8",
            "INSERT INTO badges VALUES (5001, 'new'), (5002, NULL)",
        )
        os.killpg(doomed.pid, signal.SIGKILL)
    redis.Redis.from_url(product.environment["REDIS_URL"]).flushdb()
    with product.worker():
        out, err = waiting.communicate(timeout=240)
        assert waiting.returncode == 3, err
        assert '"completed_with_quarantine"' in out
        missing = (
            "SELECT count(*) FROM badges b FULL JOIN new_badges n ON n.title = upper(b.name)"
            " WHERE b.name <> 'name 777' AND n.id IS NULL OR b.id IS NULL"
        )
        assert scalar(product, missing) == 0
        assert scalar(product, "SELECT count(*) FROM new_badges") == 5000 + 2 - 1 - 10 - 1 - 1
        listed = product.run("quarantine", "--json")
        reasons = {row["key"]: row["reason"] for row in listed.json["rows"]}
        assert (reasons["100"], reasons["777"], len(reasons)) == ("name_missing", "rejected", 12)
        change(
            product,
            "UPDATE badges SET name = 'named' WHERE name IS NULL AND id < 500",
            "DELETE FROM badges WHERE name IS NULL OR id = 777",
            "UPDATE new_badges SET title = 'forged' WHERE title = 'NAME 9'",
            "DELETE FROM new_badges WHERE title = 'NAME 11'",
        )
        found = product.run("verify", "--wait", "--json")
        assert (found.status, found.json["differences"]) == (
            4,
            {"badge missing new_badges": 1, "badge wrong_value new_badges.title": 1},
        )
        differing = product.run("differences", "--values", "--json").json["rows"]
        rows = {row["kind"]: row for row in differing}
        row = rows["wrong_value"]
        assert (row["expected"], row["found"]) == ("NAME 9", "forged")
        assert row["target_key"]
        assert rows["missing"]["key"] == "11"
        # After the end it is the new application's: a retry leaves it as it is.
        change(product, "UPDATE new_badges SET title = 'NAME 9' WHERE title = 'forged'")
        fixed = product.run("retry", "--wait", "--json")
        assert (fixed.status, fixed.json["differences"]) == (0, {}), fixed.err
        assert product.run("report").status == 0
        undone = product.run("rollback", "--wait", "--yes", "--json")
    assert (undone.status, undone.json["state"], undone.json["conflicts"]) == (0, "rolled_back", {})
    assert scalar(product, "SELECT count(*) FROM new_badges") == 0
