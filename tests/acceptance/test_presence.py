"""A question to the workers waits for those that listen, and for nobody else."""

from __future__ import annotations

import subprocess
import sys

from tests.acceptance.conftest import Product
from tests.wait import until

# An answer that does not come would take an hour.
ASK = """
from producer.broker import snapshot
snapshot.PING_SECONDS = 3600.0
found = snapshot.present()
print(*(worker.name for worker in found.workers), found.down, sep="\\n")
"""


def names(product: Product) -> list[str]:
    asked = subprocess.run(
        [sys.executable, "-c", ASK],
        env=product.environment,
        cwd=product.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return asked.stdout.split()


def test_no_answer_is_waited_for_that_cannot_come(product: Product) -> None:
    product.run("schema", "upgrade")
    assert names(product) == []
    with product.worker():
        until(lambda: len(names(product)) == 1)
    assert names(product) == []
