"""What a rule makes is written once for the steps and once for verification, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

DASHBOARD = Path(__file__).parents[2] / "models/dashboard"


@pytest.mark.parametrize(
    "word",
    [
        "'s Suite",
        '{"full_access"',
        "default_tools",
        "'Default Organization'",
        "'General'",
        "ELSE 'student'",
    ],
)
def test_steps_and_verification_say_it_once_each(word: str) -> None:
    said = {
        str(path.relative_to(DASHBOARD)): count
        for path in DASHBOARD.rglob("*.py")
        if (count := path.read_text().count(word))
    }
    assert set(said) == {"made.py", "checks/expected.py"}, said
