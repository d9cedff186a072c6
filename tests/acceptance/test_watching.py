"""`status --watch`, at a terminal of 80 columns without colour, and in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests import variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product

USERS = 400


@pytest.fixture
def opened(product: Product) -> Product:
    """A run of many small batches, that no worker has seen."""
    product.environment["MIGRATION_BATCH_SIZE"] = "20"
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
    assert product.run("enqueue-all", "--json").status == 0
    return product


def test_in_a_pipe_it_says_what_changes_in_plain_lines(opened: Product) -> None:
    with opened.worker():
        ended = opened.run("status", "--watch", "--json")
    assert ended.status == 3, ended.err
    said = [line for line in ended.err.splitlines() if re.match(r"Run \S+ is running, ", line)]
    assert said and "\x1b" not in ended.err
    shares = [int(found[1]) for line in said if (found := re.search(r"(\d+) % done", line))]
    assert shares == sorted(shares) and shares[-1] <= 100
    assert (ended.json["progress"], ended.json["live"]) == (1.0, None)
    assert ended.json["users"]["total"] == USERS


@pytest.mark.long
def test_at_a_terminal_it_shows_stages_and_workers_in_80_columns(opened: Product) -> None:
    master, terminal = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):
            while text := os.read(master, 65536):
                shown.extend(text)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with opened.worker():
        watch = subprocess.Popen(
            [str(Path(sys.executable).parent / "producer"), "status", "--watch"],
            env=opened.environment
            | {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "50"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=terminal,
        )  # fmt: skip
        assert watch.wait(COMMAND_SECONDS) == 3
    os.close(terminal)
    reader.join(10)
    text = shown.decode()
    # What moves the cursor is no colour.
    assert not re.search(r"\x1b\[[\d;]*m", re.sub(r"\x1b\[[01]m", "", text))
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    # An address is never cut.
    lines = [line for line in re.split(r"[\r\n]+", plain) if not line.startswith("Database: ")]
    assert max(map(len, lines)) <= 80
    for part in ("reconciliation", "workers", "batches", "quarantined", "/s"):
        assert part in plain, part
