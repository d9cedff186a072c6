"""Steps are files: one more legacy table is one new file and one line in a list."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import text

import models
from tests import variants
from tests.acceptance.conftest import Product

STEP = '''
"""Badges: a toy table with a rule of its own."""

from models.steps.base import Context, Counts, Scope, Step, counts

APPLY = """
WITH badge AS (SELECT b.* FROM badges b WHERE {scope}),
award AS (
  INSERT INTO awards (id, user_id, title) SELECT b.id, b.user_id, upper(b.name) FROM badge b
  WHERE b.name IS NOT NULL ON CONFLICT (id) DO NOTHING RETURNING 1
),
aside AS (
  INSERT INTO migration.quarantine (entity, legacy_key, run_id, batch_id, reason, message)
  SELECT 'badge', b.id::text, :run_id, :batch_id, 'name_missing', 'The name is null.'
  FROM badge b WHERE b.name IS NULL
  ON CONFLICT (entity, legacy_key) DO UPDATE SET run_id = excluded.run_id
)
SELECT count(*) AS badges, count(*) FILTER (WHERE name IS NULL) AS badges_quarantined FROM badge
"""
DIFFERENCES = """
SELECT CASE WHEN a.id IS NULL THEN 'missing' ELSE 'wrong_value' END, 'badge', b.id::text, 'awards',
  NULL::text
FROM badges b LEFT JOIN awards a ON a.id = b.id
WHERE {scope} AND a.title IS DISTINCT FROM upper(b.name) AND NOT EXISTS (
  SELECT FROM migration.quarantine q WHERE q.entity = 'badge' AND q.legacy_key = b.id::text
    AND q.state IN ('open', 'accepted'))
"""


class Badges(Step):
    name, stage, queue, entity = "badges", "badges", "migration.users", "badge"

    def source(self, context: Context):
        return context.find_table("badges")

    def apply(self, context: Context, scope: Scope) -> Counts:
        condition = scope.condition("b.id", "integer")
        return counts(context.execute(APPLY, scope, scope=condition).one())

    def differences(self, context: Context, scope: Scope) -> list[str]:
        return [context.render(DIFFERENCES, scope=scope.condition("b.id", "integer"))]
'''


def test_a_toy_table_migrates_with_one_file_and_one_line(product: Product, tmp_path: Path) -> None:
    copy = tmp_path / "code"
    shutil.copytree(Path(models.__file__).parent, copy / "models")
    (copy / "models" / "steps" / "badges.py").write_text(STEP)
    listing = copy / "models" / "steps" / "__init__.py"
    listing.write_text(
        listing.read_text().replace(
            '    "switch:Switch",\n', '    "badges:Badges",\n    "switch:Switch",\n'
        )
    )
    product.environment["PYTHONPATH"] = str(copy)
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 50)
        for statement in (
            "CREATE TABLE badges (id integer PRIMARY KEY, user_id varchar, name text)",
            "CREATE TABLE awards (id integer PRIMARY KEY, user_id varchar, title text)",
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
    assert forged.json["differences"] == {"badge wrong_value awards": 1}
