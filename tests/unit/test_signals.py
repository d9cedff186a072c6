"""Limits are parsed by name, and the first signal beyond its own is named."""

from __future__ import annotations

import pytest

from models.postgres.load import SIGNALS, Limits, excess, parse_limits

CALM: dict[str, float | None] = dict.fromkeys(SIGNALS, 0.0)


def test_nothing_said_means_the_defaults_and_off_means_none() -> None:
    assert parse_limits("") == Limits()
    assert parse_limits("off").is_off
    assert not Limits().is_off


def test_what_is_named_replaces_its_default_and_nothing_else() -> None:
    limits = parse_limits("lag=5, commit=off,unreadable=stop")
    assert limits == Limits(lag=5.0, commit=None, stops_unread=True)


@pytest.mark.parametrize(
    "text", ["lags=5", "lag", "lag=", "lag=-1", "lag=0", "lag=nan", "lag=inf", "unreadable=maybe"]
)
def test_what_cannot_be_a_limit_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("=")[0]):
        parse_limits(text)


@pytest.mark.parametrize("name", SIGNALS)
def test_each_signal_stops_beyond_its_limit_and_not_at_it(name: str) -> None:
    limit = getattr(Limits(), name)
    assert excess(CALM | {name: limit}, Limits()) is None
    said = excess(CALM | {name: limit * 1.5}, Limits())
    assert said is not None and "limit" in said


def test_a_signal_that_is_not_there_or_not_looked_at_is_no_strain() -> None:
    assert excess({}, Limits(stops_unread=True)) is None
    assert excess(CALM | {"lag": 99.0}, Limits(lag=None)) is None


def test_a_signal_that_cannot_be_read_counts_as_configured() -> None:
    blind: dict[str, float | None] = CALM | {"lag": None}
    assert excess(blind, Limits()) is None
    assert excess(blind, Limits(stops_unread=True)) == "replication lag cannot be read"
