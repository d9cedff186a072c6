"""One more legacy table is one new file and one line in a list: those of docs/add-a-step.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sqlalchemy import text

import models
from tests import variants
from tests.acceptance.conftest import Product

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-step.md").read_text(encoding="utf-8")
TABLES, STEP, LINES = re.findall(r"```\w+\n(.*?)```", PAGE, re.DOTALL)


def test_a_toy_table_migrates_with_one_file_and_one_line(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / "code"
    shutil.copytree(Path(models.__file__).parent, copy / "models")
    (copy / "models" / "dashboard" / "badges.py").write_text(STEP)
    listing = copy / "models" / "engine" / "migration.py"
    steps = listing.read_text()
    assert LINES.splitlines(keepends=True)[1] in steps
    listing.write_text(steps.replace(LINES.splitlines(keepends=True)[1], LINES))
    product.environment["PYTHONPATH"] = str(copy)
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 50)
        for statement in (
            TABLES,
            "INSERT INTO badges SELECT n, 'u', CASE WHEN n % 50 <> 0 THEN 'badge ' || n END"
            " FROM generate_series(1, 1000) AS n",
            # A row that the database refuses: bisected, and set aside alone.
            "ALTER TABLE awards ADD CHECK (title <> 'BADGE 777')",
        ):
            connection.execute(text(statement))
    with product.worker():
        ended = product.run("enqueue-all", "--wait", "--json")
    assert ended.status == 3, ended.err
    with product.engine.connect() as connection:
        awards = connection.scalar(text("SELECT count(*) FROM awards"))
        found = connection.execute(
            text("SELECT legacy_key, reason FROM migration.quarantine WHERE entity = 'badge'")
        )
        aside = {row.legacy_key: row.reason for row in found}
    assert awards == 1000 - 20 - 1
    assert aside.pop("777") == "rejected"
    assert set(aside.values()) == {"name_missing"}
    stages = {stage["name"]: stage for stage in ended.json["stages"]}
    assert stages["badges"]["rows"] == 1000
    with product.engine.begin() as connection:
        connection.execute(text("UPDATE awards SET title = 'forged' WHERE id = 7"))
    with product.worker():
        forged = product.run("verify", "--wait", "--json")
    assert (forged.status, forged.json["differences"]) == (4, {"badge wrong_value awards": 1})
    with product.engine.begin() as connection:
        for statement in (
            "UPDATE awards SET title = 'BADGE 7' WHERE id = 7",
            "UPDATE badges SET name = 'named' WHERE id = 50",
            "DELETE FROM badges WHERE id = 100",
        ):
            connection.execute(text(statement))
    with product.worker():
        retried = product.run("retry", "--wait", "--json")
        with product.engine.connect() as connection:
            title = connection.scalar(text("SELECT title FROM awards WHERE id = 50"))
            states = connection.execute(
                text(
                    "SELECT legacy_key, state FROM migration.quarantine WHERE entity = 'badge'"
                    " AND legacy_key IN ('50', '100', '150', '777')"
                )
            )
            state = {row.legacy_key: row.state for row in states}
        undone = product.run("rollback", "--wait", "--yes", "--json")
    assert (retried.status, retried.json["differences"]) == (3, {}), retried.err
    assert title == "NAMED"
    assert state == {"50": "resolved", "100": "removed", "150": "open", "777": "open"}
    assert (undone.status, undone.json["state"]) == (3, "rolled_back"), undone.err
    assert undone.json["conflicts"] == {"badges irreversible": 1}
