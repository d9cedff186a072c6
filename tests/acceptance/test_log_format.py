"""What workers log: a line an event, as logfmt or as JSON, of the libraries too."""

from __future__ import annotations

import json
import re

import pytest

from producer.demo import sample
from tests.acceptance.conftest import Product

_VALUE = r'("([^"\\]|\\.)*"|[^" ]*)'
LOGFMT = re.compile(rf"timestamp=\S+ level=\w+ event={_VALUE}( [\w.]+={_VALUE})*")


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_every_line_of_a_workers_log_has_the_form(product: Product, form: str) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 60)
    with product.worker("--loglevel=INFO", MIGRATION_LOG_FORMAT=form):
        assert product.run("enqueue-all", "--wait").status == 3
    lines = (product.folder / "celery-0.log").read_text().splitlines()
    # Celery's banner ends with its list of tasks.
    start = max(n for n, line in enumerate(lines) if line.startswith("  . ")) + 1
    found = [line for line in lines[start:] if line]
    assert found
    for line in found:
        if form == "json":
            assert {"timestamp", "level", "event"} <= json.loads(line).keys()
        else:
            assert LOGFMT.fullmatch(line), line
