"""The statements of a declared step (`copy.py` fills them): write, bring in line, check, undo."""

APPLY = """
WITH read AS MATERIALIZED (
  SELECT s.*, {reason} AS migration_reason FROM {source} s WHERE {scope}
),
s AS (SELECT * FROM read WHERE migration_reason IS NULL){written},
bad AS (
  INSERT INTO migration.quarantine AS q
    (entity, legacy_key, run_id, batch_id, reason, message, row_hash)
  SELECT {entity}, {key}::text, :run_id, :batch_id, s.migration_reason,
    CASE s.migration_reason {messages} END, {row_hash}
  FROM read s WHERE s.migration_reason IS NOT NULL
  {quarantine_again}
),
resolved AS (
  UPDATE migration.quarantine q SET state = 'resolved', changed_at = clock_timestamp()
  WHERE q.entity = {entity} AND q.state IN ('open', 'accepted')
    AND q.legacy_key IN (SELECT {key}::text FROM s)
)
SELECT (SELECT count(*) FROM read) AS total,
  (SELECT count(*) FROM read WHERE migration_reason IS NOT NULL) AS quarantined{counts}
"""
INSERT = """,
row_{n} AS MATERIALIZED ({rows}),
made_{n} AS (
  INSERT INTO {table} ({columns}) SELECT {columns} FROM row_{n}
  ON CONFLICT ({key}) DO NOTHING
  RETURNING {key}::text AS row_key, {hash} AS row_hash
),
noted_{n} AS (
  INSERT INTO migration.created_rows (entity, source_key, table_name, row_key, run_id, row_hash)
  SELECT {entity}, r.source_key_, {table_name}, m.row_key, :run_id, m.row_hash
  FROM made_{n} m JOIN row_{n} r ON r.row_key_ = m.row_key
  ON CONFLICT (entity, source_key, table_name, row_key) DO UPDATE SET
    run_id = excluded.run_id, row_hash = excluded.row_hash
)"""
FILL = """,
filled AS (
  UPDATE {source} u SET {assignments}
  FROM s LEFT JOIN migration.before_images i ON i.run_id = :own_run AND i.entity = {entity}
    AND i.legacy_key = {key}::text
  WHERE {u_key} = {key} AND {own_scope} AND ({differs_any})
  RETURNING {u_key}::text AS legacy_key, {values} AS filled
),
image AS (
  INSERT INTO migration.before_images AS b (run_id, entity, legacy_key, was)
  SELECT :run_id, {entity}, f.legacy_key, jsonb_build_object('filled', f.filled - ARRAY(
    SELECT k FROM s LEFT JOIN migration.before_images i ON i.run_id = :own_run
      AND i.entity = {entity} AND i.legacy_key = {key}::text, unnest(ARRAY[{kept}]) AS k
    WHERE {key}::text = f.legacy_key AND k <> ''))
  FROM filled f
  ON CONFLICT (entity, legacy_key, run_id) DO UPDATE SET was = jsonb_build_object('filled',
    coalesce(b.was -> 'filled', '{{}}') || (excluded.was -> 'filled'))
)"""

# What these source rows have become, brought in line: rows of this run, and rows of earlier ones
# that are as those wrote them. What the new application has changed since is left alone.
REMOVE = """
WITH gone AS MATERIALIZED (
  SELECT c.* FROM migration.created_rows c
  WHERE c.entity = {entity} AND c.table_name = {table_name} AND {of_scope}
    AND (c.source_key, c.row_key) NOT IN (SELECT r.source_key_, r.row_key_ FROM ({rows}) AS r
      WHERE r.row_key_ IS NOT NULL)
),
removed AS (
  DELETE FROM {table} t USING gone g
  WHERE t.{key}::text = g.row_key AND ({hash} = g.row_hash OR g.run_id = :own_run)
  RETURNING t.{key}::text AS row_key
),
forgotten AS (
  DELETE FROM migration.created_rows c USING gone g
  WHERE c.entity = g.entity AND c.source_key = g.source_key AND c.table_name = g.table_name
    AND c.row_key = g.row_key
    AND (c.row_key IN (SELECT row_key FROM removed)
      OR NOT EXISTS (SELECT FROM {table} t WHERE t.{key}::text = c.row_key))
)
SELECT -count(*) FROM removed
"""
CHANGE = """
WITH wanted AS MATERIALIZED ({rows}),
changed AS (
  UPDATE {table} t SET {assignments}
  FROM wanted r JOIN migration.created_rows c ON c.entity = {entity}
    AND c.source_key = r.source_key_ AND c.table_name = {table_name} AND c.row_key = r.row_key_
  WHERE t.{key}::text = r.row_key_ AND ({hash} = c.row_hash OR c.run_id = :own_run)
  RETURNING t.{key}::text AS row_key, {hash} AS row_hash
)
UPDATE migration.created_rows c SET row_hash = h.row_hash FROM changed h
WHERE c.entity = {entity} AND c.table_name = {table_name} AND c.row_key = h.row_key
  AND c.row_hash <> h.row_hash
"""
# NOT IN is one hash of the page, whatever the planner thinks that it holds.
# Rows that the migration created and that nothing expects any more, or that stand under the id of
# a source row without being expected.
EXTRA = """
SELECT 'extra', {entity}, c.source_key, {table_name}, NULL::text, c.row_key, NULL, NULL
FROM migration.created_rows c JOIN {table} t ON t.{key}::text = c.row_key AND {hash} = c.row_hash
WHERE c.entity = {entity} AND c.table_name = {table_name} AND {of_scope}
  AND t.{key} NOT IN (SELECT e.wanted_key FROM e WHERE e.wanted_key IS NOT NULL)
"""
EXTRA_BY_ID = """
UNION SELECT 'extra', {entity}, {source_key}::text, {table_name}, NULL::text, t.{key}::text,
  NULL, NULL
FROM {source} s JOIN {table} t ON t.{key} = CAST({id} AS {key_type})
WHERE {scope} AND t.{key} NOT IN (SELECT e.wanted_key FROM e WHERE e.wanted_key IS NOT NULL)
  AND NOT EXISTS (SELECT FROM migration.created_rows c WHERE c.entity = {entity}
    AND c.source_key = {source_key}::text AND c.table_name = {table_name}
    AND c.row_key = t.{key}::text AND {hash} <> c.row_hash)
"""
# An id of that form that no run created: somebody forged it, or it was restored from elsewhere.
STRAYS = """
SELECT 'extra', {entity}, t.{key}::text, {table_name}, 'not created by a run'
FROM {table} t LEFT JOIN migration.created_rows c
  ON c.entity = {entity} AND c.table_name = {table_name} AND c.row_key = t.{key}::text
WHERE {is_kind} AND c.row_key IS NULL
"""

UNDO = """
WITH mine AS MATERIALIZED (
  SELECT c.* FROM migration.created_rows c
  WHERE c.run_id = :run_id AND c.entity = {entity} AND c.table_name = {table_name} AND {of_scope}
),
removed AS (
  DELETE FROM {table} t USING mine m
  WHERE t.{key}::text = m.row_key AND (:forced OR {hash} = m.row_hash)
  RETURNING t.{key}::text AS row_key
),
kept AS (
  {note}
  SELECT :run_id, 'changed', {table_name}, m.row_key, '', NULL FROM mine m
  JOIN {table} t ON t.{key}::text = m.row_key
  WHERE m.row_key NOT IN (SELECT row_key FROM removed)
  ON CONFLICT DO NOTHING
),
forgotten AS (
  DELETE FROM migration.created_rows c USING mine m
  WHERE c.entity = m.entity AND c.source_key = m.source_key AND c.table_name = m.table_name
    AND c.row_key = m.row_key AND (c.row_key IN (SELECT row_key FROM removed)
      OR NOT EXISTS (SELECT FROM {table} t WHERE t.{key}::text = c.row_key))
)
SELECT -count(*) FROM removed
"""
UNFILL = """
WITH image AS MATERIALIZED (
  SELECT i.legacy_key, i.was -> 'filled' AS filled FROM migration.before_images i
  WHERE i.run_id = :run_id AND i.entity = {entity} AND i.was ? 'filled' AND {of_scope}
),
restored AS (
  UPDATE {source} u SET {assignments} FROM image i WHERE {u_key}::text = i.legacy_key
),
kept AS (
  {note}
  SELECT :run_id, 'changed', {plural}, i.legacy_key, d.detail, NULL
  FROM image i JOIN {source} u ON {u_key}::text = i.legacy_key
  CROSS JOIN LATERAL (VALUES {changes}) AS d(detail, is_changed)
  WHERE d.is_changed AND NOT :forced
  ON CONFLICT DO NOTHING
)
DELETE FROM migration.before_images b USING image i
WHERE b.run_id = :run_id AND b.entity = {entity} AND b.legacy_key = i.legacy_key
"""
