"""Addresses are read as libpq and redis-py read them, and are refused without quoting them."""

from __future__ import annotations

import pytest

from models.postgres import addresses


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("postgresql://u:p@h/d", "u@h:5432/d"),
        ("postgres://u@h:6543/d", "u@h:6543/d"),
        ("postgresql+asyncpg://u:p%40x@h/d?sslmode=require", "u@h:5432/d"),
        ("postgresql://u:p@a:5432,b:5433/d?target_session_attrs=read-write", "u@a:5432,b:5433/d"),
        ("postgresql://u@/d?host=a&host=b&port=1&port=2", "u@a:1,b:2/d"),
        ("postgresql://u@/d?host=a:1&host=b:2", "u@a:1,b:2/d"),
        ("postgresql://u@/d?host=a,b", "u@a:5432,b:5432/d"),
        ("postgresql://u@/d?host=/tmp/x", "u@/tmp/x:5432/d"),
        ("postgresql://u@%2Ftmp%2Fx/d", "u@/tmp/x:5432/d"),
        ("postgresql://u@[::1]:6000/d", "u@[::1]:6000/d"),
        ("postgresql://u@/", "u@localhost:5432/u"),
    ],
)
def test_a_database_is_named_as_libpq_finds_it(url: str, described: str) -> None:
    assert addresses.describe(url) == described
