"""The hand-written SQL script, as good as its author could make it: writes only, no proof.

One session with foreign keys and second indexes in place all along; or two sessions, a half of the
users each, which add them after the load, one after another: the limit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import Engine

# The same rows as the product writes, with ids that sort as the legacy keys do.
TABLES = """
CREATE TYPE user_type AS ENUM ('student', 'teacher', 'admin', 'developer');
CREATE TYPE billing_tier AS ENUM ('free', 'basic', 'premium', 'enterprise');
CREATE TABLE organizations (id varchar PRIMARY KEY, name varchar NOT NULL, type varchar,
  subscription_tier billing_tier NOT NULL, credits_balance numeric(10, 2) DEFAULT 0,
  settings jsonb DEFAULT '{}', created_at timestamp DEFAULT now(),
  updated_at timestamp DEFAULT now());
CREATE TABLE departments (id varchar PRIMARY KEY, organization_id varchar NOT NULL,
  name varchar NOT NULL, description varchar, settings jsonb DEFAULT '{}',
  created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TABLE ai_suites (id varchar PRIMARY KEY, user_id varchar NOT NULL, name varchar NOT NULL,
  description varchar, configuration jsonb DEFAULT '{}', is_active boolean DEFAULT true,
  created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now());
CREATE TABLE ai_tools (id varchar PRIMARY KEY, name varchar NOT NULL, description varchar,
  tool_type varchar NOT NULL, version varchar, configuration jsonb DEFAULT '{}',
  pricing_tier billing_tier NOT NULL, credits_cost numeric(10, 2) DEFAULT 0,
  is_active boolean DEFAULT true, requires_approval boolean DEFAULT false,
  created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now(), suite_id varchar);
CREATE TABLE tool_assignments (tool_id varchar, user_id varchar, assigned_by varchar,
  assigned_at timestamp DEFAULT now(), expires_at timestamp, permissions jsonb DEFAULT '{}',
  PRIMARY KEY (tool_id, user_id));
CREATE TABLE tool_usage_logs (id varchar PRIMARY KEY, user_id varchar NOT NULL,
  tool_id varchar NOT NULL, session_id varchar, module_id varchar, action varchar NOT NULL,
  parameters jsonb DEFAULT '{}', credits_used numeric(10, 2) DEFAULT 0, status varchar,
  error_message varchar, started_at timestamp DEFAULT now(), completed_at timestamp,
  duration double precision);
CREATE TABLE credit_logs (id varchar PRIMARY KEY, user_id varchar NOT NULL,
  operation varchar NOT NULL, amount numeric(10, 2) NOT NULL,
  balance_after numeric(10, 2) NOT NULL, reason varchar, run_id varchar,
  created_at timestamp DEFAULT now());
ALTER TABLE users ADD user_type user_type, ADD billing_tier billing_tier,
  ADD organization_id varchar, ADD department_id varchar, ADD credits_balance numeric(10, 2),
  ADD is_active boolean, ADD last_login timestamp, ADD preferences jsonb;
INSERT INTO organizations (id, name, type, subscription_tier)
  VALUES ('default-organization', 'Default Organization', 'education', 'free');
INSERT INTO departments (id, organization_id, name, description)
  VALUES ('default-department', 'default-organization', 'General', 'Default department');
"""

_REFERENCES = (
    ("departments", "organization_id", "organizations"),
    ("ai_suites", "user_id", "users"),
    ("ai_tools", "suite_id", "ai_suites"),
    ("tool_assignments", "tool_id", "ai_tools"),
    ("tool_assignments", "user_id", "users"),
    ("tool_usage_logs", "user_id", "users"),
    ("tool_usage_logs", "tool_id", "ai_tools"),
    ("credit_logs", "user_id", "users"),
    ("users", "organization_id", "organizations"),
    ("users", "department_id", "departments"),
)
# The primary key of the assignments serves their tools. Every contestant has the same indexes.
INDEXES = [
    f"CREATE INDEX ix_{table}_{column} ON {table} ({column})"
    for table, column, _ in _REFERENCES
    if (table, column) != ("tool_assignments", "tool_id")
]
KEYS = [
    f"ALTER TABLE {table} ADD FOREIGN KEY ({column}) REFERENCES {target} (id)"
    f" ON DELETE {'SET NULL' if table == 'users' else 'CASCADE'}"
    for table, column, target in _REFERENCES
]
DEFAULTS = """
ALTER TABLE users ALTER user_type SET DEFAULT 'student', ALTER billing_tier SET DEFAULT 'free',
  ALTER credits_balance SET DEFAULT 0, ALTER is_active SET DEFAULT true,
  ALTER user_type SET NOT NULL, ALTER billing_tier SET NOT NULL,
  ALTER credits_balance SET NOT NULL, ALTER is_active SET NOT NULL
"""

_ROLE = r"lower(btrim(u.role, E' \t\n\r'))"
_TYPE = (
    f"CASE WHEN {_ROLE} IN ('student', 'teacher', 'admin', 'developer') THEN {_ROLE}"
    " ELSE 'student' END"
)
_GRANT = f"CASE {_TYPE} WHEN 'teacher' THEN 500 WHEN 'admin' THEN 1000 ELSE 100 END"
LOAD = (
    """
INSERT INTO ai_suites (id, user_id, name, configuration)
SELECT 's-' || u.id, u.id, u.email || '''s Suite',
  '{"default_tools": [], "preferences": {}, "auto_configuration": true}'
FROM users u WHERE %(range)s ORDER BY u.id
""",
    """
INSERT INTO ai_tools (id, name, tool_type, version, configuration, pricing_tier, credits_cost,
  is_active, requires_approval, suite_id)
SELECT 't-' || s.id, s.gpt_id, 'gpt', s.version, coalesce(s.preferences::jsonb, '{}'), 'free', 0,
  s.status = 'active' AND s.is_active IS NOT FALSE, false, 's-' || s.user_id
FROM users u JOIN gpt_subscriptions s ON s.user_id = u.id WHERE %(range)s ORDER BY s.id
""",
    """
INSERT INTO tool_assignments (tool_id, user_id, assigned_by, permissions)
SELECT 't-' || s.id, s.user_id, 'system', '{"full_access": true}'
FROM users u JOIN gpt_subscriptions s ON s.user_id = u.id WHERE %(range)s ORDER BY s.id
""",
    """
INSERT INTO tool_usage_logs (id, user_id, tool_id, session_id, action, parameters, credits_used,
  status, completed_at, duration)
SELECT 'u-' || s.id, s.user_id, 't-' || s.id, 'script', 'migration', '{}', 0, 'completed', now(), 0
FROM users u JOIN gpt_subscriptions s ON s.user_id = u.id WHERE %(range)s ORDER BY s.id
""",
    """
INSERT INTO ai_tools (id, name, tool_type, configuration, pricing_tier, credits_cost, is_active,
  requires_approval, suite_id)
SELECT 'p-' || p.id, p.active_gpt_id, 'gpt',
  jsonb_build_object('project_id', p.id, 'gpt_id', p.active_gpt_id), 'free', 0, true, false,
  's-' || p.user_id
FROM users u JOIN projects p ON p.user_id = u.id
WHERE %(range)s AND btrim(p.active_gpt_id) <> '' ORDER BY p.id
""",
    """
INSERT INTO tool_assignments (tool_id, user_id, assigned_by, permissions)
SELECT 'p-' || p.id, p.user_id, 'system', '{"full_access": true}'
FROM users u JOIN projects p ON p.user_id = u.id
WHERE %(range)s AND btrim(p.active_gpt_id) <> '' ORDER BY p.id
""",
    """
INSERT INTO tool_usage_logs (id, user_id, tool_id, session_id, action, parameters, credits_used,
  status, completed_at, duration)
SELECT 'v-' || p.id, p.user_id, 'p-' || p.id, 'script', 'migration', '{}', 0, 'completed', now(), 0
FROM users u JOIN projects p ON p.user_id = u.id
WHERE %(range)s AND btrim(p.active_gpt_id) <> '' ORDER BY p.id
""",
    f"""
INSERT INTO credit_logs (id, user_id, operation, amount, balance_after, reason, run_id)
SELECT 'g-' || u.id, u.id, 'add', {_GRANT}, {_GRANT}, 'migration_grant', 'script'
FROM users u WHERE %(range)s ORDER BY u.id
""",
    f"""
UPDATE users u SET user_type = ({_TYPE})::user_type, billing_tier = 'free', is_active = true,
  organization_id = 'default-organization', department_id = 'default-department',
  credits_balance = {_GRANT}
WHERE %(range)s
""",
    """
UPDATE projects p SET is_template = coalesce(p.is_template, false),
  active_gpt_id = CASE WHEN btrim(p.active_gpt_id) <> '' THEN 'p-' || p.id ELSE p.active_gpt_id END
FROM users u WHERE p.user_id = u.id AND %(range)s
""",
)


def run_single(engine: Engine) -> None:
    """One session, one transaction; foreign keys and indexes are there from the start."""
    with engine.begin() as connection:
        for statement in (TABLES, *INDEXES, *KEYS):
            connection.exec_driver_sql(statement)
    with engine.begin() as connection:
        for statement in LOAD:
            connection.exec_driver_sql(statement % {"range": "true"})
    with engine.begin() as connection:
        connection.exec_driver_sql(DEFAULTS)


def run_limit(engine: Engine) -> None:
    """Two sessions for the load; then indexes and keys, one after another."""
    with engine.begin() as connection:
        connection.exec_driver_sql(TABLES)
        middle = connection.exec_driver_sql(
            "SELECT id FROM users ORDER BY id OFFSET (SELECT count(*) / 2 FROM users) LIMIT 1"
        ).scalar()

    def load(half: str) -> None:
        with engine.begin() as connection:
            for statement in LOAD:
                connection.exec_driver_sql(statement % {"range": half})

    with ThreadPoolExecutor(2) as sessions:
        for done in [sessions.submit(load, f"u.id {sign} '{middle}'") for sign in ("<", ">=")]:
            done.result()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in (*INDEXES, *KEYS, DEFAULTS):
            connection.exec_driver_sql(statement)
