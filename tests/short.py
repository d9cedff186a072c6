"""The short form of a test with many parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def short(values: Iterable[Any], *kept: object) -> list[Any]:
    """All of the values; those that are not kept are left to `make test-all`."""
    values = list(values)
    assert set(kept) <= set(values)
    return [
        each
        if each in kept
        else pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.long)
        for each in values
    ]
