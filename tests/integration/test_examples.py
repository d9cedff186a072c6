"""The migrations under examples/ end right, follow the application, and leave nothing behind."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from worker import testing

CORE_USERS = (
    "CREATE TABLE core_users (id uuid PRIMARY KEY, email text, first_name text, last_name text,"
    " role text)",
    "INSERT INTO core_users SELECT md5(n::text)::uuid, CASE WHEN n % 50 = 0 THEN ' '"
    " WHEN n % 10 = 0 THEN 'SAME' || n % 3 || '@x.org' ELSE 'user' || n || '@x.org' END,"
    " CASE WHEN n % 3 <> 0 THEN 'First' || n END, CASE WHEN n % 4 <> 0 THEN 'Last ' END,"
    " (ARRAY['admin', 'teacher', 'student', 'boss', NULL])[1 + n % 5]"
    " FROM generate_series(1, 300) AS n",
)
PROFILES = (
    "CREATE TABLE profiles (id bigint PRIMARY KEY, is_public boolean, tags jsonb)",
    "INSERT INTO profiles SELECT n, n % 3 = 0, CASE WHEN n % 50 = 0 THEN '{\"a\": 1}'::jsonb"
    " WHEN n % 7 = 0 THEN NULL WHEN n % 5 = 0 THEN '[]' ELSE jsonb_build_array(' a', n) END"
    " FROM generate_series(1, 300) AS n",
)
LONGEST = 60


def test_core_users_become_dashboard_users() -> None:
    with testing.site("examples.core_users:MIGRATION", *CORE_USERS) as site:
        assert site.play_examples() == []

        def write(stage: str) -> None:
            if stage == "replay":
                site.execute(
                    "UPDATE core_users SET email = 'moved@x.org' WHERE email = 'user7@x.org'",
                    "DELETE FROM core_users WHERE email = 'user8@x.org'",
                )

        run = site.run(before=write)
        assert (run.exit_status, run.differences) == (3, {}), run.error
        found = site.rows(
            "SELECT (SELECT count(*) FROM dashboard_users) AS made,"
            " (SELECT count(DISTINCT lower(email)) FROM core_users WHERE email <> ' ') AS wanted"
        )
        assert found[0]["made"] == found[0]["wanted"]
        emails = {row["email"] for row in site.rows("SELECT email FROM dashboard_users")}
        assert "moved@x.org" in emails and not {"user7@x.org", "user8@x.org"} & emails
        assert set(site.quarantined().values()) == {"email_blank", "email_taken"}
        assert site.rollback().state == "rolled_back"
        assert site.rows("SELECT * FROM dashboard_users") == []


def test_tags_become_rows_and_columns_are_filled() -> None:
    with testing.site("examples.profiles:MIGRATION", *PROFILES) as site:
        assert site.play_examples() == []

        def write(stage: str) -> None:
            if stage == "finish":
                site.execute("""UPDATE profiles SET tags = '["x", "y", "z"]' WHERE id = 1""")

        run = site.run(before=write)
        assert (run.exit_status, run.differences) == (3, {}), run.error
        first = site.rows("SELECT tag FROM profile_tags WHERE profile_id = 1 ORDER BY place")
        assert [row["tag"] for row in first] == ["x", "y", "z"]
        counted = "SELECT tag_count, visibility FROM profiles WHERE id = 1"
        assert site.rows(counted) == [{"tag_count": 3, "visibility": "private"}]
        assert site.rollback().state == "rolled_back"
        assert site.rows("SELECT * FROM profile_tags") == []
        assert site.rows("SELECT * FROM profiles WHERE visibility IS NOT NULL") == []


@pytest.mark.parametrize("name", ["core_users", "profiles"])
def test_an_example_is_short(name: str) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    source = path.read_text(encoding="utf-8")
    (step,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    given = [n for n in step.body if isinstance(n, ast.Assign) and n.targets[0].id == "examples"]  # type: ignore[attr-defined]
    lines = source.splitlines()
    own = lines[: given[0].lineno - 1] + lines[given[0].end_lineno or 0 :]
    assert len([line for line in own if line.strip()]) <= LONGEST
