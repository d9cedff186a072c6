"""Deterministic ids: at most 36 characters, never two alike, in the order of the legacy keys."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from models.dashboard import ids as kinds
from models.engine import keys
from models.postgres import database as databases

KINDS = (
    kinds.SUITE,
    kinds.SUBSCRIPTION_TOOL,
    kinds.PROJECT_TOOL,
    kinds.SUBSCRIPTION_USAGE,
    kinds.PROJECT_USAGE,
    kinds.OPENING,
    kinds.GRANT,
)
KEYS = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=60),
    st.uuids().map(str),
    st.uuids().map(lambda key: key.hex),
    st.text("ab-_~!", min_size=33, max_size=37),
)


@pytest.fixture(scope="module")
def connection(servers: object) -> Iterator[Connection]:
    engine = databases.create(servers.database_url)  # type: ignore[attr-defined]
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def ids(connection: Connection, values: list[object], base_type: str, kind: str) -> list[str]:
    expression = keys.id_of(kind, "k", base_type)
    statement = text(
        f"SELECT {expression} FROM unnest(CAST(:values AS {base_type}[]))"
        " WITH ORDINALITY AS given(k, n) ORDER BY n"
    )
    return list(connection.scalars(statement, {"values": values}))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(KEYS, unique=True, min_size=1, max_size=30))
def test_text_keys_never_meet_whatever_their_kind_and_form(
    connection: Connection, given_keys: list[object]
) -> None:
    made = [i for kind in KINDS for i in ids(connection, given_keys, "text", kind)]
    assert len(set(made)) == len(KINDS) * len(given_keys)
    assert max(map(len, made)) <= keys.ID_LENGTH


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=1, max_size=30))
def test_integer_keys_sort_as_numbers_and_fit(
    connection: Connection, given_keys: list[int]
) -> None:
    made = ids(connection, list(given_keys), "bigint", kinds.SUITE)
    assert len(set(made)) == len(given_keys)
    assert max(map(len, made)) <= keys.ID_LENGTH
    numbers = sorted(zip(given_keys, made, strict=True))
    for low, high in itertools.pairwise(numbers):
        # In byte order: negative numbers ("!") before the others ("-").
        assert low[1].encode() < high[1].encode()


def test_uuid_keys_fit_and_a_uuid_in_text_takes_the_same_form(connection: Connection) -> None:
    given_keys = [uuid.UUID(int=n << 96) for n in range(1, 50)]
    made = ids(connection, [str(key) for key in given_keys], "uuid", kinds.SUITE)
    assert made == sorted(made)
    assert ids(connection, [str(key) for key in given_keys], "text", kinds.SUITE) == made
    assert {len(key) for key in made} == {34}
