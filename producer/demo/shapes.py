"""The public dashboard's own shapes, as its models make them: scripts over the generated school.

Each is applied to the three legacy tables of `producer.demo.sample`, and has a shipped mapping of
the same name.
"""

from __future__ import annotations

# Integer keys in the order of the sample's; a deleted owner's is one that nobody has.
_INTEGER_KEYS = r"""
    ALTER TABLE users ALTER id TYPE integer USING split_part(id, '_', 2)::integer + 1;
    ALTER TABLE gpt_subscriptions
        ALTER id TYPE integer USING split_part(id, '_', 2)::integer + 1,
        ALTER user_id TYPE integer USING
            split_part(user_id, '_', 2)::integer + 1 + 1000000 * (user_id ~ 'deleted')::integer;
    ALTER TABLE projects
        ALTER id TYPE integer USING split_part(id, '_', 2)::integer + 1,
        ALTER user_id TYPE integer USING
            split_part(user_id, '_', 2)::integer + 1 + 1000000 * (user_id ~ 'deleted')::integer,
        ALTER active_gpt_id TYPE varchar(36);
"""

# The users keep an enum with names in capitals, and two more of them than the rules know.
_USERS = """
    CREATE TYPE userrole AS ENUM ('ADMIN', 'TEACHER', 'STUDENT', 'PARENT', 'STAFF');
    ALTER TABLE users ALTER role DROP DEFAULT, ALTER role TYPE userrole USING
        (CASE lower(btrim(role)) WHEN 'admin' THEN 'ADMIN' WHEN 'teacher' THEN 'TEACHER'
            WHEN 'student' THEN 'STUDENT' WHEN 'developer' THEN 'STAFF' ELSE 'PARENT'
         END)::userrole;
    ALTER TABLE users ADD is_active boolean, ADD preferences json;
    CREATE SEQUENCE users_id_seq START 1000000 OWNED BY users.id;
    ALTER TABLE users ALTER id SET DEFAULT nextval('users_id_seq');
"""

_TARGETS = """
    CREATE TYPE base_status_enum AS ENUM ('DRAFT', 'ACTIVE', 'ARCHIVED');
    CREATE TABLE organizations (
        id serial PRIMARY KEY, name varchar NOT NULL, type varchar,
        subscription_tier varchar(20) DEFAULT 'BASIC', credits_balance numeric(10, 2),
        settings_data json, status base_status_enum NOT NULL,
        created_at timestamp, updated_at timestamp
    );
    CREATE TABLE departments (
        id serial PRIMARY KEY, organization_id integer NOT NULL REFERENCES organizations,
        name varchar NOT NULL, description varchar, settings json,
        status base_status_enum NOT NULL, created_at timestamp, updated_at timestamp
    );
    CREATE TABLE ai_suites (
        id serial PRIMARY KEY, user_id integer NOT NULL, name varchar NOT NULL,
        description varchar, version varchar, configuration json, is_active boolean,
        created_at timestamp, updated_at timestamp
    );
    CREATE TABLE ai_tools (
        id serial PRIMARY KEY, suite_id integer REFERENCES ai_suites, name varchar NOT NULL,
        description varchar, tool_type varchar NOT NULL, configuration json, status varchar,
        created_at timestamp, updated_at timestamp
    );
    CREATE TABLE tool_assignments (
        tool_id integer REFERENCES ai_tools, user_id integer,
        assigned_by integer REFERENCES {users}, assigned_at timestamp, expires_at timestamp,
        PRIMARY KEY (tool_id, user_id)
    );
    CREATE TABLE dashboard_tool_usage_logs (
        id serial PRIMARY KEY, user_id integer NOT NULL, tool_id integer REFERENCES ai_tools,
        session_id varchar, action varchar NOT NULL, usage_data json,
        "timestamp" timestamp NOT NULL, status varchar
    );
    CREATE TABLE dashboard_marketplace_listings (
        id serial PRIMARY KEY, tool_id integer NOT NULL REFERENCES ai_tools,
        title varchar NOT NULL, seller_note varchar NOT NULL
    );
"""

# As its seeds: some users with suites of their own, a configuration that is a JSON string, tools
# without a tier, a project that holds a bare number.
_SEEDED = """
    INSERT INTO organizations (name, type, status, created_at)
    VALUES ('Lincoln High', 'school', 'ACTIVE', '2024-01-01');
    INSERT INTO departments (organization_id, name, status) VALUES (1, 'General', 'DRAFT');
    INSERT INTO ai_suites (user_id, name, configuration, is_active, created_at)
    SELECT u.id, 'My suite ' || n, to_json('{{"theme": "dark"}}'::text), true,
        timestamp '2024-02-01' + n * interval '1 day'
    FROM (SELECT id FROM {users} WHERE email IS NOT NULL ORDER BY id LIMIT 3) u,
        generate_series(1, 3) n WHERE n < 3 OR u.id > 0;
    INSERT INTO ai_tools (suite_id, name, tool_type, configuration, status)
    SELECT s.id, 'whiteboard', 'canvas', '{{"pens": 4}}', 'ACTIVE' FROM ai_suites s;
    INSERT INTO tool_assignments (tool_id, user_id, assigned_by, assigned_at)
    SELECT t.id, s.user_id, s.user_id, '2024-03-01' FROM ai_tools t
    JOIN ai_suites s ON s.id = t.suite_id;
    UPDATE {projects} SET active_gpt_id = (1 + mod(id, 9))::text WHERE mod(id, 5) = 0;
    UPDATE {projects} p SET active_gpt_id = held.key FROM (
        SELECT o.id, min(s.id)::text AS key
        FROM {projects} o LEFT JOIN {subscriptions} s ON s.user_id = o.user_id
        WHERE mod(o.id, 3) = 0 GROUP BY o.id
    ) held WHERE held.id = p.id;
"""

_DASHBOARD_TABLES = """
    ALTER TABLE users RENAME TO dashboard_users;
    ALTER TABLE gpt_subscriptions RENAME TO dashboard_gpt_subscriptions;
    ALTER TABLE projects RENAME TO dashboard_projects;
    ALTER TABLE dashboard_projects ADD organization_id integer NOT NULL DEFAULT 1;
"""
_GPT_DEFINITIONS = """
    CREATE TABLE gpt_definitions (id serial PRIMARY KEY, name varchar NOT NULL);
    INSERT INTO gpt_definitions (name)
    SELECT DISTINCT gpt_id FROM gpt_subscriptions WHERE btrim(gpt_id) <> '' ORDER BY gpt_id;
    ALTER TABLE gpt_subscriptions ADD gpt_definition_id integer REFERENCES gpt_definitions;
    UPDATE gpt_subscriptions s SET gpt_definition_id = d.id FROM gpt_definitions d
    WHERE d.name = s.gpt_id;
"""
_HERE = {
    "users": "dashboard_users",
    "subscriptions": "dashboard_gpt_subscriptions",
    "projects": "dashboard_projects",
}
_RENAMED_COLUMNS = """
    ALTER TABLE gpt_subscriptions RENAME preferences TO configuration;
    ALTER TABLE gpt_subscriptions RENAME gpt_id TO name;
    ALTER TABLE gpt_subscriptions DROP status, DROP version;
"""
# The users of its core, who have a subscription of a plan and projects of their organization.
_CORE = """
    CREATE TYPE subscription_status AS ENUM ('ACTIVE', 'INACTIVE', 'PAUSED');
    ALTER TABLE gpt_subscriptions
        DROP preferences, DROP version, DROP is_active,
        ALTER status TYPE subscription_status USING upper(btrim(status))::subscription_status;
    ALTER TABLE gpt_subscriptions RENAME gpt_id TO plan_id;
    ALTER TABLE projects RENAME TO organization_projects;
    DELETE FROM organization_projects p WHERE NOT EXISTS (
        SELECT FROM users u WHERE u.id = p.user_id);
    ALTER TABLE organization_projects ADD organization_id integer NOT NULL DEFAULT 1,
        ADD FOREIGN KEY (user_id) REFERENCES users;
    ALTER TABLE users ADD organization_id integer, ADD department_id integer;
"""
_CORE_SEEDED = """
    ALTER TABLE users ADD FOREIGN KEY (organization_id) REFERENCES organizations,
        ADD FOREIGN KEY (department_id) REFERENCES departments;
    UPDATE users SET organization_id = 1 WHERE mod(id, 10) = 0;
    ALTER TABLE organization_projects ADD FOREIGN KEY (organization_id) REFERENCES organizations;
"""
_CORE_HERE = {
    "users": "users",
    "subscriptions": "gpt_subscriptions",
    "projects": "organization_projects",
}
_JULY_TARGETS = _TARGETS.replace("version varchar, configuration", "configuration")

SCRIPTS = {
    "today": _INTEGER_KEYS
    + _USERS
    + _GPT_DEFINITIONS
    + _RENAMED_COLUMNS
    + _DASHBOARD_TABLES
    + _TARGETS.format(**_HERE)
    + _SEEDED.format(**_HERE),
    "today-core": _INTEGER_KEYS
    + _USERS
    + _CORE
    + _TARGETS.format(**_CORE_HERE)
    + _SEEDED.format(**_CORE_HERE)
    + _CORE_SEEDED,
    "july-2025": _INTEGER_KEYS
    + _USERS
    + _RENAMED_COLUMNS
    + _DASHBOARD_TABLES
    + _JULY_TARGETS.format(**_HERE)
    + _SEEDED.format(**_HERE),
}
