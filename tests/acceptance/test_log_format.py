"""What workers log: a line an event, as logfmt or as JSON, of the libraries too."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack

import pytest

from producer.demo import sample
from tests.acceptance.conftest import Product

_VALUE = r'("([^"\\]|\\.)*"|[^" ]*)'
LOGFMT = re.compile(rf"timestamp=\S+ level=\w+ event={_VALUE}( [\w.]+={_VALUE})*")


# Two workers of one run, each with batches that the other cannot have.
QUEUES = {
    "logfmt": "migration.users,migration.control",
    "json": "migration.projects,migration.verify,migration.credits",
}


@pytest.mark.long
def test_every_line_of_a_workers_log_has_the_form(product: Product) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 60)
    with ExitStack() as workers:
        for form, queues in QUEUES.items():
            options = ("--loglevel=INFO", "-Q", queues, "-n", f"{form}@%h")
            workers.enter_context(product.worker(*options, MIGRATION_LOG_FORMAT=form))
        assert product.run("enqueue-all", "--wait").status == 3
    for number, form in enumerate(QUEUES):
        has_form((product.folder / f"celery-{number}.log").read_text().splitlines(), form)


def has_form(lines: list[str], form: str) -> None:
    """Each line of a worker's log, those of its batches among them."""
    # Celery's banner ends with its list of tasks.
    start = max(n for n, line in enumerate(lines) if line.startswith("  . ")) + 1
    found = [line for line in lines[start:] if line]
    assert any("batch done" in line for line in found)
    for line in found:
        if form == "json":
            assert {"timestamp", "level", "event"} <= json.loads(line).keys()
        else:
            assert LOGFMT.fullmatch(line), line
