"""`producer demo` as a newcomer types it."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from tests.acceptance.conftest import Product


@pytest.mark.long
def test_the_demonstration_finds_its_workers_and_keeps_its_folder_to_itself(
    product: Product, tmp_path: Path
) -> None:
    home = {"MIGRATION_HOME": str(tmp_path / "home")}
    ended = product.run("demo", "--users", "20", "--json", **home)
    assert (ended.status, ended.json["state"]) == (0, "completed_with_quarantine"), ended.err
    # It waits for the file of a worker's life: under another name there would be none.
    assert "No worker" not in ended.err
    with (tmp_path / "home" / "demo" / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = product.run("demo", "--json", **home)
    assert (second.status, second.json["error"]["kind"]) == (2, "misconfigured")
    assert "Another demonstration" in second.json["error"]["message"]
