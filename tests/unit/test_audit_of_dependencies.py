"""What `make audit` makes of pip-audit's answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.audit import judge

FINE: dict[str, Any] = {"name": "celery", "version": "5.7.0", "vulns": []}
FLAWED = FINE | {"vulns": [{"id": "CVE-1", "fix_versions": ["5.7.1"]}]}
SKIPPED = {"name": "celery", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "passes", "said"),
    [
        ([FINE, FINE], True, "2 packages audited by pypi, 0 known"),
        ([FINE, FLAWED], False, "celery 5.7.0: CVE-1, fixed in 5.7.1"),
        ([FINE, SKIPPED], True, "Not known there: celery"),
        # pip-audit says "No known vulnerabilities found" here.
        ([SKIPPED, SKIPPED], None, "does not answer"),
        (None, None, "does not answer"),
    ],
)
def test_only_what_was_looked_up_passes(packages: Any, passes: bool | None, said: str) -> None:
    found = None if packages is None else {"dependencies": packages}
    words, verdict = judge("pypi", found)
    assert (verdict, said in words) == (passes, True), words
