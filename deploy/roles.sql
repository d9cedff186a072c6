-- Two roles of the migration in the dashboard's database, each with what it needs and no more.
--
--   migration_producer  the command `producer`, and workers of the queue migration.control: indexes,
--                       keys and triggers need the owner of the tables, whose rights it takes on
--   migration_worker    workers of the other queues: reads and writes the columns of the migration,
--                       and cannot read a password's hash, an API key or a name
--
-- Run it as a superuser, before `producer schema upgrade` (for the roles) and after it (for what that
-- added); it is safe to repeat, and takes away what it does not grant:
--
--   psql -v owner=ROLE [-v schema=public] [-v users=users] [-v subscriptions=gpt_subscriptions]
--        [-v projects=projects] [-v reads='roles.id roles.name'] -f deploy/roles.sql DATABASE
--
-- `reads` names other columns that a mapping reads, and those that it reaches through a key. The
-- owner must own the target tables that are there already, too, since `producer schema upgrade` adds
-- columns to them: the script warns of those of other roles.
--
-- The roles come without a password: psql's \password sets one without showing it to anybody.

\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\if :{?owner}
\else
  DO $$ BEGIN RAISE EXCEPTION 'Name the owner of the legacy tables: -v owner=ROLE'; END $$;
\endif
\if :{?schema}
\else
  \set schema public
\endif
\if :{?users}
\else
  \set users users
\endif
\if :{?subscriptions}
\else
  \set subscriptions gpt_subscriptions
\endif
\if :{?projects}
\else
  \set projects projects
\endif
\if :{?reads}
\else
  \set reads ''
\endif

BEGIN;
SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['migration_producer', 'migration_worker']) AS name
WHERE to_regrole(name) IS NULL
\gexec
GRANT CONNECT ON DATABASE :"DBNAME" TO migration_producer, migration_worker;

-- The producer: whatever it makes belongs to the owner, as if the application had made it.
GRANT :"owner" TO migration_producer;
ALTER ROLE migration_producer IN DATABASE :"DBNAME" SET role = :'owner';
GRANT USAGE, CREATE ON SCHEMA :"schema" TO :"owner";
CREATE SCHEMA IF NOT EXISTS migration AUTHORIZATION :"owner";

-- The worker. The throttle looks at other sessions: how old their transactions are.
GRANT pg_read_all_stats TO migration_worker;
REVOKE ALL ON ALL TABLES IN SCHEMA :"schema", migration FROM migration_worker;
GRANT USAGE ON SCHEMA :"schema", migration TO migration_worker;

CREATE TEMP TABLE wanted (name text, privilege text, columns text[]) ON COMMIT DROP;
INSERT INTO wanted VALUES
  (:'users', 'SELECT', '{id,email,role,user_type,billing_tier,organization_id,department_id,
    credits_balance,is_active,preferences}'),
  (:'users', 'UPDATE', '{user_type,billing_tier,organization_id,department_id,credits_balance,
    is_active}'),
  (:'subscriptions', 'SELECT', '{id,user_id,gpt_id,status,preferences,version,is_active}'),
  (:'projects', 'SELECT', '{id,user_id,active_gpt_id,is_template}'),
  (:'projects', 'UPDATE', '{active_gpt_id,is_template}'),
  ('organizations', 'SELECT', NULL),
  ('departments', 'SELECT', NULL),
  ('marketplace_listings', 'SELECT, DELETE', NULL),
  ('ai_suites', 'SELECT, INSERT, UPDATE, DELETE', NULL),
  ('ai_tools', 'SELECT, INSERT, UPDATE, DELETE', NULL),
  ('tool_assignments', 'SELECT, INSERT, UPDATE, DELETE', NULL),
  ('tool_usage_logs', 'SELECT, INSERT, UPDATE, DELETE', NULL),
  ('credit_logs', 'SELECT, INSERT, UPDATE, DELETE', NULL);
INSERT INTO wanted
SELECT split_part(name, '.', 1), 'SELECT', ARRAY[split_part(name, '.', 2)]
FROM regexp_split_to_table(:'reads', '[ ,]+') AS name WHERE name <> '';

SELECT format('DO $do$ BEGIN RAISE WARNING ''%%'', %L; END $do$', format(
  '%s belongs to %s, but %s must be able to alter it: ALTER TABLE %s OWNER TO %I',
  c.oid::regclass, c.relowner::regrole, :'owner', c.oid::regclass, :'owner'))
FROM pg_class c
WHERE c.relnamespace = to_regnamespace(quote_ident(:'schema')) AND c.relkind = 'r'
  AND (c.relname IN (:'users', :'projects', :'subscriptions')
    OR c.relname IN (SELECT w.name FROM wanted w WHERE w.columns IS NULL))
  AND NOT pg_has_role(:'owner', c.relowner, 'USAGE')
\gexec

SELECT format('REVOKE ALL (%I) ON %s FROM migration_worker', a.attname, c.oid::regclass)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE c.relnamespace = to_regnamespace(quote_ident(:'schema')) AND c.relkind = 'r'
  AND a.attacl IS NOT NULL
UNION ALL
SELECT format('GRANT %s %s ON %s TO migration_worker', w.privilege, '(' || k.columns || ')',
  c.oid::regclass)
FROM wanted w
JOIN pg_class c ON c.relname = w.name AND c.relnamespace = to_regnamespace(quote_ident(:'schema'))
CROSS JOIN LATERAL (
  SELECT string_agg(quote_ident(a.attname), ', ') AS columns FROM pg_attribute a
  WHERE a.attrelid = c.oid AND a.attname = ANY(w.columns) AND NOT a.attisdropped) AS k
WHERE w.columns IS NULL OR k.columns IS NOT NULL
UNION ALL
-- The ledger, but for what operators did and which revision it has.
SELECT format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO migration_worker', c.oid::regclass)
FROM pg_class c
WHERE c.relnamespace = 'migration'::regnamespace AND c.relkind = 'r'
  AND c.relname NOT IN ('audit', 'alembic_version', 'ledger', 'schema_objects')
UNION ALL
SELECT 'GRANT SELECT ON migration.schema_objects TO migration_worker'
WHERE to_regclass('migration.schema_objects') IS NOT NULL
\gexec
COMMIT;
