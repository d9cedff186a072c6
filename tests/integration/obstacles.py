"""What real databases put in the way of a run: SQL, and what `check` must say about it.

`refused`: a row of `check` fails, naming `word`, and a run is refused with nothing changed.
`warned`: a warning names `word`, the run ends, and quarantines rows at most.
`fine`: no row fails, and the run ends as the oracle says.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.variants import ADOPTED, BARE, INTEGER, PLAIN, UUID, Variant

REFUSED, WARNED, FINE = "refused", "warned", "fine"


@dataclass(frozen=True)
class Case:
    """One obstacle, on a variant of the legacy database."""

    name: str
    script: str
    verdict: str = REFUSED
    word: str = ""
    variant: Variant = PLAIN


def _trigger(table: str, event: str, body: str, *, deferred: bool = False) -> str:
    function = (
        f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;"
    )
    kind = "CONSTRAINT TRIGGER" if deferred else "TRIGGER"
    timing = "DEFERRABLE INITIALLY DEFERRED" if deferred else ""
    return (
        f"{function} CREATE {kind} meddling {event} ON {table} {timing} FOR EACH ROW"
        " EXECUTE FUNCTION meddle();"
    )


def _adopted(name: str, script: str, verdict: str = REFUSED, word: str = "") -> Case:
    return Case(name, script, verdict, word, ADOPTED)


_PUBLISHED = "ALTER TABLE {t} DROP CONSTRAINT {t}_pkey; ALTER TABLE {t} ADD UNIQUE (id);"
_NO_INHERIT = "has child tables"
_DEFERRED_SOME = _trigger(
    "users",
    "AFTER UPDATE",
    "IF NEW.email ~ '^[a-h]' THEN RAISE EXCEPTION 'no'; END IF; RETURN NULL;",
    deferred=True,
)
_DEFERRED_ALL = _trigger("users", "AFTER UPDATE", "RAISE EXCEPTION 'no';", deferred=True)

CASES = (
    # Shapes of the legacy tables.
    Case("users have children", "CREATE TABLE old () INHERITS (users)", word=_NO_INHERIT),
    Case("projects have children", "CREATE TABLE old () INHERITS (projects)", word=_NO_INHERIT),
    Case(
        "subscriptions are a child",
        "CREATE TABLE all_of (LIKE gpt_subscriptions);"
        " ALTER TABLE gpt_subscriptions INHERIT all_of",
        word="is a child",
    ),
    Case("users are unlogged", "ALTER TABLE users SET UNLOGGED", word="unlogged"),
    Case("projects are unlogged", "ALTER TABLE projects SET UNLOGGED", WARNED, "unlogged"),
    Case(
        "a rule that does also on users",
        "CREATE TABLE seen (id text); CREATE RULE users_log AS ON UPDATE TO users"
        " DO ALSO INSERT INTO seen (id) VALUES (old.id)",
        word="rule users_log",
    ),
    Case(
        "a rule that does instead on projects",
        "CREATE RULE frozen AS ON UPDATE TO projects WHERE old.name = 'x' DO INSTEAD NOTHING",
        word="rule frozen",
    ),
    Case(
        "a rule for inserts that the run never does",
        "CREATE RULE no_more AS ON INSERT TO projects WHERE new.name = '' DO INSTEAD NOTHING",
        FINE,
    ),
    Case(
        "active_gpt_id is generated",
        "ALTER TABLE projects DROP active_gpt_id; ALTER TABLE projects ADD active_gpt_id varchar"
        " GENERATED ALWAYS AS (configuration->>'gpt') STORED",
        word="active_gpt_id: expected a plain column",
    ),
    Case(
        "active_gpt_id is in a key of two columns",
        "CREATE TABLE gpts (owner varchar, gpt varchar, PRIMARY KEY (owner, gpt));"
        " ALTER TABLE projects ADD CONSTRAINT chosen FOREIGN KEY (user_id, active_gpt_id)"
        " REFERENCES gpts NOT VALID",
        word="(chosen)",
    ),
    Case(
        "another table points at active_gpt_id",
        "DELETE FROM projects a USING projects b WHERE a.active_gpt_id = b.active_gpt_id"
        " AND a.id > b.id; ALTER TABLE projects ADD UNIQUE (active_gpt_id);"
        " CREATE TABLE uses (gpt varchar CONSTRAINT of_gpt REFERENCES projects (active_gpt_id))",
        word="of_gpt",
    ),
    Case(
        "subscriptions belong to other users",
        "CREATE TABLE people AS SELECT id FROM users UNION SELECT user_id FROM gpt_subscriptions;"
        " ALTER TABLE people ADD PRIMARY KEY (id); ALTER TABLE gpt_subscriptions"
        " ADD CONSTRAINT of_people FOREIGN KEY (user_id) REFERENCES people",
        word="(of_people) to another table",
    ),
    Case(
        "is_active is a smallint",
        "ALTER TABLE gpt_subscriptions ALTER is_active DROP DEFAULT, ALTER is_active TYPE smallint"
        " USING is_active::int::smallint",
        word="is_active: expected boolean, found smallint",
    ),
    Case(
        "is_active is a word",
        "ALTER TABLE gpt_subscriptions ALTER is_active DROP DEFAULT, ALTER is_active TYPE text"
        " USING CASE WHEN is_active THEN 'enabled' ELSE 'disabled' END",
        word="no boolean",
    ),
    Case(
        "is_active is a word that is a boolean",
        "ALTER TABLE gpt_subscriptions ALTER is_active DROP DEFAULT, ALTER is_active TYPE text"
        " USING CASE WHEN is_active THEN 'yes' ELSE 'off' END",
        WARNED,
    ),
    Case(
        "is_active is an enum",
        "CREATE TYPE mood AS ENUM ('on', 'off'); ALTER TABLE gpt_subscriptions"
        " ALTER is_active DROP DEFAULT, ALTER is_active TYPE mood USING 'on'::mood",
        word="found mood",
    ),
    Case(
        "users are published without an identity",
        _PUBLISHED.format(t="users") + "CREATE PUBLICATION p FOR ALL TABLES",
        word="no replica identity",
    ),
    Case(
        "projects alone are published without an identity",
        "ALTER TABLE projects REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE projects",
        word="public.projects is published (p)",
    ),
    Case(
        "users are published with a full identity",
        _PUBLISHED.format(t="users")
        + "ALTER TABLE users REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR ALL TABLES",
        FINE,
    ),
    Case("inserts alone are published",
         _PUBLISHED.format(t="users")
         + "CREATE PUBLICATION p FOR TABLE users WITH (publish = 'insert')", FINE),
    Case(
        "a row filter over a column that is no identity",
        "CREATE PUBLICATION p FOR TABLE users WHERE (role = 'admin')",
        word="cannot be updated",
    ),
    Case(
        "a check that old rows do not satisfy",
        "ALTER TABLE users ADD CONSTRAINT modern CHECK (id > 'usr_1') NOT VALID",
        word="constraint modern (NOT VALID)",
    ),
    Case(
        "a check that all rows satisfy",
        "ALTER TABLE users ADD CONSTRAINT modern CHECK (id > 'a') NOT VALID",
        FINE,
    ),
    # Triggers.
    Case("a deferred trigger refuses some users", _DEFERRED_SOME, word="meddle"),
    Case("a deferred trigger refuses all users", _DEFERRED_ALL, word="meddle"),
    Case(
        "a trigger refuses every switch",
        _trigger("projects", "BEFORE UPDATE", "RAISE EXCEPTION 'no';"),
        word="meddle",
    ),
    Case(
        "a trigger swallows every update",
        _trigger("users", "BEFORE UPDATE", "RETURN NULL;"),
        word="end otherwise than written",
    ),
    Case(
        "a trigger keeps active_gpt_id",
        _trigger(
            "projects", "BEFORE UPDATE", "NEW.active_gpt_id := OLD.active_gpt_id; RETURN NEW;"
        ),
        word="end otherwise than written",
    ),
    Case(
        "a trigger that only looks",
        _trigger("users", "BEFORE UPDATE", "NEW.updated_at := now(); RETURN NEW;"),
        WARNED,
        "meddle",
    ),
    Case(
        "a trigger that is off",
        _trigger("users", "BEFORE UPDATE", "RAISE EXCEPTION 'no';")
        + "ALTER TABLE users DISABLE TRIGGER meddling",
        FINE,
    ),
    Case(
        "a trigger for inserts that the run never does",
        _trigger("users", "BEFORE INSERT", "RAISE EXCEPTION 'no';"),
        FINE,
    ),
    Case(
        "a trigger of statements",
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'no'; END $$; CREATE TRIGGER meddling AFTER UPDATE ON users"
        " FOR EACH STATEMENT EXECUTE FUNCTION meddle()",
        word="meddle",
    ),
    # Adopted tables.
    _adopted("names of tools are unique",
             "UPDATE ai_tools SET name = id; ALTER TABLE ai_tools ADD CONSTRAINT c UNIQUE (name)",
             word="constraint c"),
    _adopted("a name once a suite",
             "ALTER TABLE ai_tools ADD CONSTRAINT c UNIQUE (suite_id, name)", word="constraint c"),
    _adopted("an index of an expression is unique",
             "CREATE UNIQUE INDEX c ON ai_tools (lower(name), suite_id)", word="constraint c"),
    _adopted("a partial index is unique",
             "CREATE UNIQUE INDEX c ON ai_tools (suite_id) WHERE tool_type = 'gpt'",
             word="constraint c"),
    _adopted("one log a user is unique",
             "CREATE UNIQUE INDEX c ON tool_usage_logs (user_id, action)"
             " WHERE action = 'migration' AND id LIKE 'u%'", word="constraint c"),
    _adopted("an exclusion constraint",
             "ALTER TABLE ai_tools ADD CONSTRAINT c EXCLUDE USING btree (suite_id WITH =)"
             " WHERE (tool_type = 'gpt')",
             word="constraint c"),
    _adopted("known types of tools",
             "ALTER TABLE ai_tools ADD CONSTRAINT c CHECK (tool_type IN ('canvas', 'shop'))"
             " NOT VALID", word="constraint c"),
    _adopted("known actions",
             "ALTER TABLE tool_usage_logs ADD CONSTRAINT c CHECK (action <> 'migration') NOT VALID",
             word="c"),
    _adopted("a check that all satisfy",
             "ALTER TABLE ai_tools ADD CONSTRAINT c CHECK (length(name) < 1000)", WARNED,
             "CHECK c"),
    _adopted("one suite a name",
             "CREATE UNIQUE INDEX c ON ai_suites (name) WHERE name LIKE '%''s Suite'", WARNED,
             "unique c"),
    _adopted("a narrow balance", "ALTER TABLE users ALTER credits_balance TYPE numeric(5,2)",
             word="credits_balance is numeric(5,2)"),
    _adopted("narrow names of suites", "ALTER TABLE ai_suites ALTER name TYPE varchar(24)",
             word="ai_suites.name is character varying(24)"),
    _adopted("narrow names of tools",
             "UPDATE ai_tools SET name = left(name, 5); ALTER TABLE ai_tools ALTER name TYPE"
             " varchar(5)", word="ai_tools.name is"),
    _adopted("names of tools that are long enough",
             "ALTER TABLE ai_tools ALTER name TYPE varchar(500)", FINE),
    _adopted("narrow keys of users",
             "TRUNCATE tool_usage_logs; ALTER TABLE tool_usage_logs DROP CONSTRAINT"
             " tool_usage_logs_user_id_fkey, ALTER user_id TYPE varchar(3)",
             word="tool_usage_logs.user_id is"),
    _adopted("row-level security on suites",
             "ALTER TABLE ai_suites ENABLE ROW LEVEL SECURITY;"
             " ALTER TABLE ai_suites FORCE ROW LEVEL SECURITY", word="BYPASSRLS"),
    _adopted("suites of another owner", "ALTER TABLE ai_suites OWNER TO somebody",
             word="ownership of public.ai_suites"),
    _adopted("tools that may not be inserted", "REVOKE INSERT ON ai_tools FROM operator",
             word="INSERT on public.ai_tools"),
    _adopted("tools have children", "CREATE TABLE old_tools () INHERITS (ai_tools)",
             word=_NO_INHERIT),
    _adopted("unlogged logs", "ALTER TABLE tool_usage_logs SET UNLOGGED", word="unlogged"),
    _adopted("a rule on tools",
             "CREATE RULE no_gpt AS ON INSERT TO ai_tools WHERE new.tool_type = 'gpt'"
             " DO INSTEAD NOTHING", word="rule no_gpt"),
    _adopted("suites of other people",
             "CREATE TABLE people AS SELECT id FROM users; ALTER TABLE people ADD PRIMARY KEY (id);"
             " ALTER TABLE ai_suites DROP CONSTRAINT ai_suites_user_id_fkey,"
             " ADD CONSTRAINT c FOREIGN KEY (user_id) REFERENCES people", word="(c)"),
    _adopted("a list of known types",
             "CREATE TABLE types (name varchar PRIMARY KEY); INSERT INTO types"
             " SELECT DISTINCT tool_type FROM ai_tools WHERE tool_type <> 'gpt';"
             " UPDATE ai_tools SET tool_type = 'canvas';"
             " ALTER TABLE ai_tools ADD CONSTRAINT c FOREIGN KEY (tool_type) REFERENCES types",
             word="constraint c"),
    _adopted("a trigger refuses new tools",
             _trigger("ai_tools", "BEFORE INSERT", "RAISE EXCEPTION 'no';"), word="meddle"),
    _adopted("a trigger renames new tools",
             _trigger("ai_tools", "BEFORE INSERT", "NEW.name := NEW.name || '!'; RETURN NEW;"),
             word="end otherwise than written"),
    _adopted("a deferred trigger refuses assignments",
             _trigger("tool_assignments", "AFTER INSERT", "RAISE EXCEPTION 'no';", deferred=True),
             word="meddle"),
    _adopted("an identity column",
             "ALTER TABLE ai_tools ALTER is_active DROP DEFAULT, DROP is_active,"
             " ADD is_active boolean GENERATED ALWAYS AS (true) STORED", word="ai_tools.is_active"),
    _adopted("a required column that nobody fills",
             "ALTER TABLE ai_suites ADD kind varchar; UPDATE ai_suites SET kind = 'x';"
             " ALTER TABLE ai_suites ALTER kind SET NOT NULL", word="ai_suites.kind"),
    _adopted("a view in the place of a table",
             "CREATE TABLE logs_of_credits (id varchar); CREATE VIEW credit_logs AS SELECT id FROM"
             " logs_of_credits", word="credit_logs"),
    _adopted("published assignments without an identity",
             "ALTER TABLE tool_assignments REPLICA IDENTITY NOTHING;"
             " CREATE PUBLICATION p FOR TABLE tool_assignments", word="no replica identity"),
    # Ordinary shapes.
    Case("a key of two columns",
         "ALTER TABLE projects DROP CONSTRAINT projects_pkey, ADD PRIMARY KEY (id, user_id),"
         " ADD UNIQUE (id)", FINE),
    Case("one subscription of a GPT each",
         "DELETE FROM gpt_subscriptions a USING gpt_subscriptions b WHERE a.user_id = b.user_id"
         " AND a.gpt_id = b.gpt_id AND a.id > b.id;"
         " ALTER TABLE gpt_subscriptions ADD UNIQUE (user_id, gpt_id)", FINE),
    Case("serial columns and unknown ones",
         'ALTER TABLE users ADD number serial UNIQUE, ADD "a:b" int NOT NULL DEFAULT 1', FINE),
    Case("keys of a fixed width",
         "ALTER TABLE users ALTER id TYPE char(40); ALTER TABLE gpt_subscriptions"
         " ALTER user_id TYPE char(40); ALTER TABLE projects ALTER user_id TYPE char(40)", FINE),
    Case("no user", "TRUNCATE users, gpt_subscriptions, projects", FINE),
    Case("integer keys", "", FINE, variant=INTEGER),
    Case("uuid keys", "", FINE, variant=UUID),
    Case("bare tables", "", FINE, variant=BARE),
    _adopted("adopted tables", "", FINE),
)  # fmt: skip
