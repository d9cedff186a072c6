"""The engine's side knows no user, project, subscription or credit: names come from MIGRATION."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("models", "producer", "worker")
# The dashboard's own: its migration, and the demonstration, which migrates a dashboard.
THEIRS = ("models/dashboard/", "producer/demo/")
# As words, and as parts of names such as user_id or USERS_TABLE.
WORDS = re.compile(r"(?<![a-z])(users?|projects?|subscriptions?|credits?)(?![a-z])", re.IGNORECASE)

# Which words a file still has, and why.
# (SQL's current_user does not count.)
_LOGIN = "user", "whom PostgreSQL or Redis knows by that name"
_ACCOUNT = "user", "whom the operating system knows by that name"
EXCEPTIONS = {
    "models/engine/live/capture.py": ("user", "triggers of 0.1 name the entity alone"),
    "models/errors.py": ("user", "whoever reads the message"),
    "models/ledger/audit.py": _ACCOUNT,
    "models/ledger/revisions/versions/0001_ledger.sql": ("user", "0.1, as it was released"),
    "models/ledger/tables.py": _LOGIN,
    "models/postgres/addresses.py": _LOGIN,
    "models/postgres/database.py": _LOGIN,
    "models/postgres/refusals.py": _LOGIN,
    "models/settings.py": (
        "credit credits projects subscriptions user users",
        "the dashboard's four settings, and addresses",
    ),
    "producer/backup/clients.py": _ACCOUNT,
    "producer/backup/emptying.py": ("user users", "PostgreSQL's user mappings, and an example"),
    "producer/backup/restorable.py": ("subscription user", "PostgreSQL's own"),
    "producer/broker/chords.py": ("subscription", "to a channel of Redis"),
    "producer/broker/readiness.py": _LOGIN,
    "producer/broker/refusals.py": _LOGIN,
    "producer/broker/strangers.py": _LOGIN,
    "producer/checks/http.py": ("user", "of a URL"),
    "producer/cli/checks.py": ("users", "the option --users of plan"),
    "producer/cli/repair.py": ("credit credits projects subscriptions user users", "the commands"),
    "producer/cli/showing.py": ("users", "the option --users of demo"),
    "producer/connect.py": ("user", "whoever reads the message, and of Redis"),
    "producer/doctor/findings.py": _LOGIN,
    "producer/embedded/__init__.py": _ACCOUNT,
    "producer/embedded/directories.py": _ACCOUNT,
    "producer/embedded/postgres.py": _ACCOUNT,
    "producer/embedded/processes.py": _ACCOUNT,
    "producer/embedded/programs.py": _ACCOUNT,
    "producer/new/template/pyproject.toml.txt": ("project", "a table of pyproject.toml"),
}


def test_no_other_file_knows_what_the_dashboard_migrates() -> None:
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and "__pycache__" not in name and not name.startswith(THEIRS):
                text = path.read_text(encoding="utf-8").replace("current_user", "")
                words = {word.lower() for word in WORDS.findall(text)}
                if words:
                    found[name] = " ".join(sorted(words))
    # A word too many is knowledge of the dashboard; an exception too many is to be removed.
    assert found == {name: words for name, (words, _) in EXCEPTIONS.items()}
