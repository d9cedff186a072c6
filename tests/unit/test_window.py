"""MIGRATION_WINDOW: when batches may begin, across midnight and across a change of the clocks."""

from __future__ import annotations

from datetime import datetime

import pytest

from models.window import Window, parse


def window(text: str) -> Window:
    found = parse(text)
    assert found is not None
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "now", "opens_at"),
    [
        ("22:00-06:00", "2026-11-28T21:59:59+00:00", "2026-11-28T22:00:00+00:00"),
        ("22:00-06:00", "2026-11-28T22:00:00+00:00", None),
        ("22:00-06:00", "2026-11-29T05:59:59+00:00", None),
        ("22:00-06:00", "2026-11-29T06:00:00+00:00", "2026-11-29T22:00:00+00:00"),
        ("1:30-4:00", "2026-11-28T01:30:00+00:00", None),
        ("1:30-4:00", "2026-11-28T04:00:00+00:00", "2026-11-29T01:30:00+00:00"),
        ("1:30-4:00", "2026-11-28T00:00:00+00:00", "2026-11-28T01:30:00+00:00"),
        # By the wall clock of the place, in summer and in winter.
        ("22:00-06:00 Europe/Berlin", "2026-07-01T19:59:00+00:00", "2026-07-01T22:00:00+02:00"),
        ("22:00-06:00 Europe/Berlin", "2026-07-01T20:00:00+00:00", None),
        ("22:00-06:00 Europe/Berlin", "2026-12-01T20:30:00+00:00", "2026-12-01T22:00:00+01:00"),
    ],
)
def test_batches_begin_inside_the_window_and_wait_outside(
    text: str, now: str, opens_at: str | None
) -> None:
    assert window(text).opens_at(moment(now)) == (opens_at and moment(opens_at))


def test_no_window_is_always_and_a_window_says_itself() -> None:
    assert parse("  ") is None
    assert str(window("22:00-6:00   Europe/Berlin")) == "22:00-06:00 Europe/Berlin"
    assert str(window("22:00-06:00")) == "22:00-06:00 UTC"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("22-6", "22:00-06:00"),
        ("22:00", "22:00-06:00"),
        ("24:00-06:00", "23:59"),
        ("22:60-06:00", "23:59"),
        ("22:00-22:00", "same minute"),
        ("22:00-06:00 Europe/Atlantis", "not a time zone"),
        ("22:00-06:00 ../etc/passwd", "not a time zone"),
    ],
)
def test_another_form_is_refused_with_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text)
