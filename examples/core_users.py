"""Users of a core system become users of a dashboard: MIGRATION=examples.core_users:MIGRATION.

Of several core users with one e-mail address the first is taken; the others are quarantined.
"""

from sqlalchemy import Column, MetaData, String, Table
from sqlalchemy.dialects.postgresql import JSONB

from models.engine import api

METADATA = MetaData()
texts = [Column(name, String, nullable=False) for name in ("email", "role")]
core_user = Column("core_user_id", api.KeyOf("core_user"), nullable=False, unique=True)
others = (Column("id", String(36), primary_key=True), Column("name", String))
Table("dashboard_users", METADATA, core_user, *others, *texts, Column("preferences", JSONB))
TAKEN = "EXISTS (SELECT FROM {core_users} o WHERE lower(o.email) = lower(s.email) AND o.id < s.id)"
EXPECTED = """
SELECT s.id AS source_key, s.id AS core_user_id, {id:u} AS id, first.email,
  CASE WHEN coalesce(s.first_name, '') = '' THEN nullif(btrim(s.last_name), '')
    WHEN coalesce(s.last_name, '') = '' THEN btrim(s.first_name)
    ELSE btrim(s.first_name || ' ' || s.last_name) END AS name,
  coalesce(substring(s.role FROM '^(admin|teacher)$'), 'student') AS role,
  jsonb_build_object('theme', 'light', 'language', 'en') AS preferences
FROM {core_users} s JOIN (SELECT lower(o.email) AS email, min(o.id::text) AS id
  FROM {core_users} o GROUP BY 1) AS first ON first.id = s.id::text
WHERE s.email ~ '[^[:space:]]'"""


class CoreUsers(api.Copy):
    """The name comes from two columns, the role is mapped, preferences are constants."""

    source = api.Source("core_user", reads=("email", "first_name", "last_name", "role"))
    rejects = (
        api.Reject("email_blank", "btrim(coalesce(s.email, '')) = ''", "The email is blank."),
        api.Reject("email_taken", TAKEN, "An earlier user has the same email."),
    )
    inserts = (
        api.Insert(
            "dashboard_users",
            key="core_user_id",
            id=api.derived_id("u"),
            core_user_id="s.id",
            email="lower(s.email)",
            name="nullif(btrim(concat_ws(' ', s.first_name, s.last_name)), '')",
            role="CASE WHEN s.role IN ('admin', 'teacher') THEN s.role ELSE 'student' END",
            preferences="""'{"language": "en", "theme": "light"}'""",
        ),
    )
    expects = (api.Expect("dashboard_users", EXPECTED, key="core_user_id"),)
    examples = (
        api.Example(
            {"id": "a" * 32, "email": "Ada@x.org", "first_name": "Ada", "last_name": "L"},
            {"dashboard_users": {"email": "ada@x.org", "name": "Ada L", "role": "student"}},
        ),
        api.Example(
            {"id": "b" * 32, "email": "b@x.org", "last_name": "B", "role": "admin"},
            {"dashboard_users": {"name": "B", "role": "admin",
                                 "preferences": {"language": "en", "theme": "light"}}},
        ),
        api.Example({"id": "c" * 32, "email": " "}, "email_blank"),
        api.Example({"id": "b" * 32, "email": "A@x.org"}, "email_taken",
                    beside={"core_users": [{"id": "a" * 32, "email": "a@x.org"}]}),
    )  # fmt: skip


MIGRATION = api.Migration("core_users", [CoreUsers()], schema=METADATA)
