"""Legacy databases as real dashboards have them: the sample data, transformed in SQL."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection

from producer.demo import sample
from tests.oracle import Names


@dataclass(frozen=True)
class Variant:
    """One shape of a legacy database; `script` turns the plain sample into it."""

    name: str
    special: str
    script: str = ""
    names: Names = field(default_factory=Names)
    mapping: str = ""

    def build(self, connection: Connection, users: int, *, seed: int = 1) -> None:
        """Fill an empty database, in the caller's transaction; 100 users show every oddity."""
        sample.load(connection, users, seed=seed)
        if self.script:
            connection.exec_driver_sql(self.script)
        connection.exec_driver_sql("ANALYZE")

    @property
    def environment(self) -> dict[str, str]:
        """The settings that name the tables, or the mapping that does."""
        if self.mapping:
            return {"MIGRATION_MAPPING": self.mapping}
        return {
            "MIGRATION_USERS_TABLE": self.names.users,
            "MIGRATION_SUBSCRIPTIONS_TABLE": self.names.subscriptions,
            "MIGRATION_PROJECTS_TABLE": self.names.projects,
        }

    def __str__(self) -> str:
        return self.name


PLAIN = Variant("plain", "as the dump: varchar keys, json preferences, orphans, no foreign keys")

INTEGER = Variant(
    "integer",
    "integer keys, other table names, an unknown column each, no index on user_id",
    r"""
    DROP INDEX IF EXISTS gpt_subscriptions_user_id_idx;
    DROP INDEX IF EXISTS projects_user_id_idx;
    ALTER TABLE users
        ALTER id TYPE integer USING 2 * split_part(id, '_', 2)::integer + 2,
        ADD U&"Gr\00F6\00DFe in \0025" text DEFAULT 'keep me';
    ALTER TABLE gpt_subscriptions
        ALTER id TYPE integer USING split_part(id, '_', 2)::integer + 1,
        ALTER user_id TYPE integer USING
            2 * split_part(user_id, '_', 2)::integer + 2 + (user_id ~ 'deleted')::integer,
        ADD user_type text DEFAULT 'keep me';
    ALTER TABLE projects
        ALTER id TYPE integer USING split_part(id, '_', 2)::integer + 1,
        ALTER user_id TYPE integer USING
            2 * split_part(user_id, '_', 2)::integer + 2 + (user_id ~ 'deleted')::integer,
        ADD suite_id integer DEFAULT 7;
    ALTER TABLE users RENAME TO dashboard_users;
    ALTER TABLE gpt_subscriptions RENAME TO dashboard_gpt_subscriptions;
    ALTER TABLE projects RENAME TO dashboard_projects;
    """,
    Names("dashboard_users", "dashboard_gpt_subscriptions", "dashboard_projects"),
)

UUID = Variant(
    "uuid",
    "uuid keys in no order, foreign keys without cascade, so no orphans",
    """
    DELETE FROM gpt_subscriptions WHERE user_id ~ 'deleted';
    DELETE FROM projects WHERE user_id ~ 'deleted';
    ALTER TABLE users ALTER id TYPE uuid USING md5(id)::uuid;
    ALTER TABLE gpt_subscriptions
        ALTER id TYPE uuid USING md5(id)::uuid,
        ALTER user_id TYPE uuid USING md5(user_id)::uuid;
    ALTER TABLE projects
        ALTER id TYPE uuid USING md5(id)::uuid,
        ALTER user_id TYPE uuid USING md5(user_id)::uuid;
    ALTER TABLE gpt_subscriptions ADD FOREIGN KEY (user_id) REFERENCES users;
    ALTER TABLE projects ADD FOREIGN KEY (user_id) REFERENCES users;
    """,
)

TEXT = Variant(
    "text",
    "preferences are text: some blank, some malformed, some valid in odd ways",
    r"""
    ALTER TABLE gpt_subscriptions ALTER preferences TYPE text USING preferences::text;
    UPDATE gpt_subscriptions s SET preferences = odd.value
    FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM gpt_subscriptions) numbered
    JOIN (VALUES
        (1, ''),
        (3, '   '),
        (5, E'\t\n'),
        (7, 'not json'),
        (9, '{"half": 1'),
        (11, '{''single'': 1}'),
        (13, '{"comma": 1,}'),
        (15, 'NaN'),
        (17, '{"not": NaN}'),
        (19, '{"endless": -Infinity}'),
        (21, 'NULL'),
        (23, 'null'),
        (25, E' \t{"blanks": true}\n '),
        (27, '{"zero": 01}'),
        (29, '{"nul": "\u0000"}'),
        (31, E'{"raw": "\t"}'),
        (33, '{"two": 1} {"objects": 2}'),
        (35, U&'\FEFF{"byte order mark": true}'),
        (37, U&'\00A0{"no-break space": true}'),
        (39, '{"escape": "\x"}'),
        (41, '{"quote": "\" \\ \/ \u00e9 \ud83c\udfc0"}'),
        (43, '{"numbers": [1.0, 10e-1, 1E+2, -0, 0.10, 123456789012345678901234567890]}'),
        (45, '{"n": {"e": [{"s": {"t": [[], {}, null, false, ""]}}]}, "": "empty key"}'),
        (47, '{"again": 1, "other": 2, "again": {"a": 1}}'),
        (49, '{"surrogate \udc00": 1}'),
        (51, '{"numeric": 1e131072}'),
        (53, '{"numeric": 1e131071}'),
        (55, '{"fraction": 1e-16384}'),
        (57, '"{}"'),
        (59, 'true')
    ) AS odd (n, value) ON mod(numbered.n, 331) = odd.n
    WHERE s.id = numbered.id;
    """,
)

BARE = Variant(
    "bare",
    "only the required columns are there",
    """
    ALTER TABLE users
        DROP hashed_password, DROP full_name, DROP role, DROP api_key,
        DROP last_api_key_rotation, DROP created_at, DROP updated_at;
    ALTER TABLE gpt_subscriptions
        DROP status, DROP preferences, DROP version, DROP rate_limit, DROP usage_count,
        DROP last_used, DROP subscription_date, DROP is_active, DROP created_at, DROP updated_at;
    ALTER TABLE projects
        DROP name, DROP description, DROP configuration, DROP status, DROP team_id,
        DROP is_template, DROP created_at, DROP updated_at;
    """,
)

BIGINT = Variant(
    "bigint",
    "bigint keys beyond 32 bits, zero and negative ones too; jsonb preferences",
    r"""
    CREATE FUNCTION pg_temp.jsonb_or_seven(json) RETURNS jsonb LANGUAGE plpgsql AS $$
    BEGIN RETURN $1::jsonb; EXCEPTION WHEN OTHERS THEN RETURN '7'; END $$;
    ALTER TABLE users
        ALTER id TYPE bigint USING (split_part(id, '_', 2)::bigint - 50) * 10000000003;
    ALTER TABLE gpt_subscriptions
        ALTER id TYPE bigint USING (split_part(id, '_', 2)::bigint - 50) * 10000000003,
        ALTER user_id TYPE bigint USING
            (split_part(user_id, '_', 2)::bigint - 50) * 10000000003 + (user_id ~ 'deleted')::int,
        ALTER preferences TYPE jsonb USING pg_temp.jsonb_or_seven(preferences);
    ALTER TABLE projects
        ALTER id TYPE bigint USING (split_part(id, '_', 2)::bigint - 50) * 10000000003,
        ALTER user_id TYPE bigint USING
            (split_part(user_id, '_', 2)::bigint - 50) * 10000000003 + (user_id ~ 'deleted')::int;
    """,
)

_DASHBOARD_REVISION = """
    CREATE TYPE user_type AS ENUM ('student', 'teacher', 'admin', 'developer');
    CREATE TYPE billing_tier AS ENUM ('free', 'basic', 'premium', 'enterprise');
    CREATE TYPE tool_status AS ENUM ('active', 'inactive', 'pending', 'deprecated');
    CREATE TABLE organizations (
        id varchar PRIMARY KEY, name varchar NOT NULL, type varchar NOT NULL,
        subscription_tier billing_tier NOT NULL DEFAULT 'free',
        credits_balance numeric(10, 2) DEFAULT 0, settings jsonb DEFAULT '{}',
        created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now()
    );
    CREATE TABLE departments (
        id varchar PRIMARY KEY, organization_id varchar NOT NULL REFERENCES organizations,
        name varchar NOT NULL, description varchar, settings jsonb DEFAULT '{}',
        created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now()
    );
    ALTER TABLE users
        ADD user_type user_type NOT NULL DEFAULT 'student',
        ADD billing_tier billing_tier NOT NULL DEFAULT 'free',
        ADD organization_id varchar REFERENCES organizations,
        ADD department_id varchar REFERENCES departments,
        ADD credits_balance numeric(10, 2) DEFAULT 0, ADD is_active boolean DEFAULT true,
        ADD last_login timestamp, ADD preferences jsonb DEFAULT '{}';
    CREATE TABLE ai_suites (
        id varchar PRIMARY KEY, user_id varchar NOT NULL REFERENCES users,
        name varchar NOT NULL, description varchar, configuration jsonb DEFAULT '{}',
        is_active boolean DEFAULT true,
        created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now()
    );
    CREATE TABLE ai_tools (
        id varchar PRIMARY KEY, name varchar NOT NULL, description varchar,
        tool_type varchar NOT NULL, version varchar, configuration jsonb DEFAULT '{}',
        pricing_tier billing_tier NOT NULL DEFAULT 'free', credits_cost numeric(10, 2) DEFAULT 0,
        is_active boolean DEFAULT true, requires_approval boolean DEFAULT false,
        created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now(),
        suite_id varchar REFERENCES ai_suites
    );
    CREATE TABLE marketplace_listings (
        id varchar PRIMARY KEY, tool_id varchar NOT NULL REFERENCES ai_tools,
        title varchar NOT NULL, description varchar, features jsonb DEFAULT '{}',
        pricing_details jsonb DEFAULT '{}', category varchar, tags jsonb DEFAULT '{}',
        preview_url varchar, documentation_url varchar,
        is_featured boolean DEFAULT false, is_public boolean DEFAULT true,
        created_at timestamp DEFAULT now(), updated_at timestamp DEFAULT now()
    );
    CREATE TABLE tool_assignments (
        tool_id varchar REFERENCES ai_tools, user_id varchar REFERENCES users,
        assigned_by varchar REFERENCES users, assigned_at timestamp DEFAULT now(),
        expires_at timestamp, permissions jsonb DEFAULT '{}', PRIMARY KEY (tool_id, user_id)
    );
    CREATE TABLE tool_usage_logs (
        id varchar PRIMARY KEY, user_id varchar NOT NULL REFERENCES users,
        tool_id varchar NOT NULL REFERENCES ai_tools, session_id varchar, module_id varchar,
        action varchar NOT NULL, parameters jsonb DEFAULT '{}',
        credits_used numeric(10, 2) DEFAULT 0, status varchar, error_message varchar,
        started_at timestamp DEFAULT now(), completed_at timestamp, duration double precision
    );
"""

_NEW_APPLICATION = """
    CREATE TEMPORARY TABLE numbered ON COMMIT DROP AS
    SELECT id, mod(row_number() OVER (ORDER BY id) - 1, 20) AS kind FROM users;

    INSERT INTO organizations (id, name, type, subscription_tier, credits_balance)
    VALUES ('org_lincoln', 'Lincoln High', 'school', 'premium', 1234.56);
    INSERT INTO departments (id, organization_id, name)
    VALUES ('dep_lincoln', 'org_lincoln', 'General');

    INSERT INTO ai_suites (id, user_id, name, configuration, created_at)
    SELECT 'suite_z_' || id, id, 'My own suite', '{"color": "green"}', '2024-04-01'
    FROM numbered WHERE kind IN (0, 1, 6, 8, 11, 17);
    INSERT INTO ai_suites (id, user_id, name, created_at)
    SELECT 'suite_a_' || id, id, 'My second suite', '2024-05-01' FROM numbered WHERE kind = 1;

    UPDATE users SET organization_id = 'org_lincoln', department_id = 'dep_lincoln'
    FROM numbered n WHERE n.id = users.id AND kind = 2;
    UPDATE users SET organization_id = 'org_lincoln'
    FROM numbered n WHERE n.id = users.id AND kind = 10;
    UPDATE users SET is_active = false FROM numbered n WHERE n.id = users.id AND kind IN (3, 8);
    UPDATE users SET credits_balance = 25.50 FROM numbered n WHERE n.id = users.id AND kind = 4;
    UPDATE users SET credits_balance = -12.25 FROM numbered n WHERE n.id = users.id AND kind = 5;
    UPDATE users SET credits_balance = 100.10 FROM numbered n WHERE n.id = users.id AND kind = 11;
    UPDATE users SET user_type = 'admin' FROM numbered n WHERE n.id = users.id AND kind = 6;
    UPDATE users SET user_type = 'teacher' FROM numbered n WHERE n.id = users.id AND kind = 7;
    UPDATE users SET role = 'teacher' FROM numbered n WHERE n.id = users.id AND kind IN (8, 9);
    UPDATE users SET billing_tier = 'premium', is_active = NULL, credits_balance = NULL
    FROM numbered n WHERE n.id = users.id AND kind = 9;
    UPDATE users SET last_login = '2024-06-01 12:00', preferences = '{"theme": "dark"}'
    FROM numbered n WHERE n.id = users.id AND kind = 12;

    INSERT INTO ai_tools
        (id, name, tool_type, version, configuration, pricing_tier, credits_cost, suite_id)
    SELECT 'tool_own_' || id, 'whiteboard', 'canvas', '3', '{"pens": 4}', 'basic', 1.25,
        'suite_z_' || id
    FROM numbered WHERE kind = 0;
    INSERT INTO ai_tools (id, name, tool_type, version, configuration, suite_id)
    SELECT DISTINCT ON (s.user_id)
        'tool_twin_' || s.user_id, s.gpt_id, 'gpt', s.version, '{}', 'suite_z_' || s.user_id
    FROM gpt_subscriptions s JOIN numbered n ON n.id = s.user_id WHERE kind = 0
    ORDER BY s.user_id, s.id;
    INSERT INTO tool_assignments (tool_id, user_id, assigned_by, expires_at, permissions)
    SELECT t.id, s.user_id, s.user_id, '2024-05-01', '{"read": true}'
    FROM ai_tools t JOIN ai_suites s ON s.id = t.suite_id;
    INSERT INTO tool_usage_logs (id, user_id, tool_id, action, credits_used, status, duration)
    SELECT 'log_' || tool_id, user_id, tool_id, 'migration', 0.50, 'completed', 1.5
    FROM tool_assignments;
    INSERT INTO marketplace_listings (id, tool_id, title)
    SELECT 'listing_' || id, id, 'Whiteboard' FROM ai_tools WHERE name = 'whiteboard';
    INSERT INTO projects (id, user_id, name, active_gpt_id, status)
    SELECT 'prj_new_' || id, id, 'Made by the new application', 'tool_own_' || id, 'active'
    FROM numbered WHERE kind = 0;
"""

ADOPTED = Variant(
    "adopted",
    "the dashboard's own revision made the target, and its new application wrote into it",
    _DASHBOARD_REVISION + _NEW_APPLICATION,
)

USERS_ONLY = Variant(
    "users-only",
    "neither subscriptions nor projects",
    "DROP TABLE gpt_subscriptions, projects;",
    Names("users", "none", "none"),
)

NO_PROJECTS = Variant(
    "no-projects",
    "uuid keys, as the dump of 13 May 2025 has them, and no projects",
    UUID.script + "DROP TABLE projects;",
    Names("users", "gpt_subscriptions", "none"),
)

NO_SUBSCRIPTIONS = Variant(
    "no-subscriptions",
    "integer keys, other table names, and no subscriptions",
    INTEGER.script + "DROP TABLE dashboard_gpt_subscriptions;",
    Names("dashboard_users", "none", "dashboard_projects"),
)

REVISED = Variant("revised", "the dashboard's own revision made the target", _DASHBOARD_REVISION)

DUMP = Variant(
    "dump",
    "as the real dump of May 2025: users only, uuid keys, row-level security, keys, no role",
    """
    DROP TABLE gpt_subscriptions, projects;
    ALTER TABLE users ALTER id TYPE uuid USING md5(id)::uuid;
    ALTER TABLE users
        ALTER id SET DEFAULT gen_random_uuid(), DROP role, DROP api_key, DROP last_api_key_rotation,
        ADD is_teacher boolean DEFAULT false, ADD preferences json, ADD department varchar(100);
    CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('5f3e8a1b2c4d');
    CREATE TABLE lessons (
        id uuid PRIMARY KEY, owner_id uuid REFERENCES users, reviewer_id uuid REFERENCES users
    );
    CREATE TABLE memories (
        id uuid PRIMARY KEY, user_id uuid NOT NULL REFERENCES users,
        shared_with uuid REFERENCES users
    );
    INSERT INTO lessons SELECT md5(id::text)::uuid, id, id FROM users LIMIT 20;
    INSERT INTO memories SELECT md5(id::text)::uuid, id, id FROM users LIMIT 20;
    ALTER TABLE users ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own_row ON users USING (id::text = current_setting('app.user', true));
    CREATE POLICY teachers ON users FOR SELECT USING (is_teacher);
    ALTER TABLE lessons ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own_lessons ON lessons
        USING (owner_id::text = current_setting('app.user', true));
    CREATE POLICY reviewed ON lessons FOR SELECT
        USING (reviewer_id::text = current_setting('app.user', true));
    """,
    Names("users", "none", "none"),
)

VARIANTS = (
    *(PLAIN, INTEGER, UUID, TEXT, BARE, BIGINT, ADOPTED),
    *(USERS_ONLY, NO_PROJECTS, NO_SUBSCRIPTIONS),
)
# For parametrize: two kinds of key, and users alone, in `make test`, the others in `make test-all`.
EACH = [
    pytest.param(
        each, id=str(each), marks=() if each in (PLAIN, INTEGER, USERS_ONLY) else pytest.mark.long
    )
    for each in VARIANTS
]
