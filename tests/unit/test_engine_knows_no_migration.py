"""The engine's side knows no user, project, subscription or credit: names come from MIGRATION."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = re.compile(
    r"\b(users|subscriptions?|projects?|credits?)\b|\b\w+_(users|projects|credits)\b|\busers_\w+"
)
# Names that the interface fixes, and what only sounds like it.
EXCEPTIONS = {
    "models/messages.py": "JSON: the plan's `users`, and examples in docstrings",
    "models/settings.py": "the dashboard's four settings, and their defaults",
    "producer/backup/emptying.py": "PostgreSQL's own user mappings",
    "producer/backup/restorable.py": "PostgreSQL's own subscriptions",
    "producer/broker/chords.py": "a subscription to a Redis channel",
    "producer/checks/plan.py": "the option and the JSON key `users`",
    "producer/cli/checks.py": "the option --users",
    "producer/cli/repair.py": "the commands `repair tools`, `credits` and `missing-data`",
    "producer/cli/showing.py": "the demonstration's option --users",
    "producer/reports/terminal.py": "the JSON key `users` of a plan",
}


def test_no_other_file_knows_what_the_dashboard_migrates() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("models", "producer", "worker")
        for ending in ("*.py", "*.html")
        for path in (ROOT / folder).rglob(ending)
        if WORDS.search(path.read_text(encoding="utf-8"))
    }
    theirs = ("models/dashboard/", "producer/demo/")
    assert {name for name in found if not name.startswith(theirs)} == EXCEPTIONS.keys()
