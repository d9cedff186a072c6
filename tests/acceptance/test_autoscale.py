"""The rehearsal of the autoscaling ends right, also in a hurry."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_workers_scale_from_nothing_to_four_and_back_and_no_row_is_lost() -> None:
    sizes = ("--users=4000", "--batch-size=20", "--hurry=5")
    ended = subprocess.run(
        [sys.executable, "-m", "tests.autoscale", *sizes],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    found = json.loads(ended.stdout)
    assert found["state"] == "completed_with_quarantine"
    assert found["most_pods"]["migration-users"] == 4
    assert found["pods_at_the_end"] == 0
    assert found["pods_lost"] == 1 <= found["leases_expired"]
    assert found["pods_killed_after_their_grace"] == 0
    assert found["lost"] == []
