"""Help, version and completion answer at once: they import no client, no Celery, no settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("celery", "kombu", "redis", "sqlalchemy", "pydantic", "psycopg2", "structlog")
SCRIPT = """
import sys
from producer.cli import main
sys.argv = ["producer", *sys.argv[1:]]
try:
    main()
finally:
    print(*sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["enqueue-all", "--help"]], ids=str)
def test_what_is_said_without_a_database_imports_none(words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
    assert not set(HEAVY) & set(ended.stderr.split())
