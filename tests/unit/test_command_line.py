"""Help, version and completion answer at once: they import no client, no Celery, no settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from producer.cli import cli
from producer.cli.command import SECTIONS

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


def _run(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["enqueue-all", "--help"], ["no-such"], ["status", "--no"]]
)
def test_what_is_said_without_a_database_imports_none(words: list[str]) -> None:
    ended = _run(words)
    is_wrong = "no" in words[-1]
    assert (ended.returncode, bool(ended.stdout)) == (2 if is_wrong else 0, not is_wrong)
    assert not set(HEAVY) & set(ended.stderr.split())


def test_every_command_has_its_place_in_the_help() -> None:
    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted([*placed, "servers"]) == sorted(cli.commands)


def test_completion_imports_none() -> None:
    ended = _run([], _PRODUCER_COMPLETE="bash_complete", COMP_WORDS="producer sta", COMP_CWORD="1")
    assert "plain,status" in ended.stdout
    assert not set(HEAVY) & set(ended.stderr.split())


@pytest.mark.parametrize(
    "words",
    [["status"], ["differences"], ["quarantine"], ["pause"], ["forget", "x"], ["schema", "show"]],
)
def test_a_command_that_publishes_nothing_imports_neither_celery_nor_a_redis_client(
    words: list[str], database: str, redis_url: str
) -> None:
    ended = _run(words, DATABASE_URL=database, REDIS_URL=redis_url)
    assert "Database:" in ended.stderr
    found = set(ended.stderr.split())
    assert "sqlalchemy" in found
    assert not {"celery", "kombu", "redis", "structlog", "alembic"} & found
