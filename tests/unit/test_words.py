"""Counts are written with their noun, in the number that English asks for."""

from __future__ import annotations

import pytest

from models.reports import words


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [
        (0, "row", "0 rows"),
        (1, "row", "1 row"),
        (1_204, "row", "1,204 rows"),
        (1, "discrepancy", "1 discrepancy"),
        (2, "discrepancy", "2 discrepancies"),
        (2, "key", "2 keys"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_has_its_noun(count: int, noun: str, said: str) -> None:
    assert words.number(count, noun) == said
