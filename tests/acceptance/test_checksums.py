"""The sums of a page see what the comparison row by row sees: each fault alone, on a clean page."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from models.engine import current
from models.engine.step import Context, Scope, Step
from models.ledger.tables import VERIFICATION, differences, runs
from models.postgres import database as databases
from models.settings import load
from tests import variants
from tests.acceptance.fault_list import FAULTS
from tests.acceptance.faults import Difference
from tests.acceptance.victims import Victims
from tests.driving import whole_run
from worker import verify

USERS = 250
EVERYTHING = Scope()


class _Untallied:
    """A step whose pages never match."""

    def __init__(self, step: Step) -> None:
        self.stage, self.differences, self.details = step.stage, step.differences, step.details

    def account(self, *_: object) -> str:
        return "SELECT false AS matches"


@pytest.mark.long
def test_no_fault_hides_in_the_sums(database: str, servers: object) -> None:
    engine = databases.create(database)
    try:
        with engine.begin() as connection:
            variants.PLAIN.build(connection, USERS, seed=3)
        settings = load()
        assert whole_run(engine, settings).differences == {}
        with engine.connect() as connection:
            run = connection.execute(sa.select(runs)).one()
            connection.rollback()
            with connection.begin() as clean:
                context = Context.read(connection, settings, run)
                assert _check(context, _paged()) == set()
                assert all(
                    _matches(context, step) for step in current.migration().steps_of(VERIFICATION)
                )
                clean.rollback()
            seen = 0
            for number, fault in enumerate(FAULTS):
                with connection.begin() as spoiled:
                    _spoil(connection, number)
                    context = Context.read(connection, settings, run)
                    found = _check(context, _paged())
                    connection.execute(sa.delete(differences))
                    told = _check(context, map(_Untallied, _paged()))
                    assert found == told, fault
                    seen += bool(found)
                    spoiled.rollback()
            # The rest are faults of the credits alone.
            assert seen > 0.8 * len(FAULTS)
    finally:
        engine.dispose()


def _spoil(connection: Connection, number: int) -> None:
    connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
    fault = FAULTS[number]
    values = Victims(connection, number).take(fault.pool)
    assert values is not None, fault
    for statement in fault.statements:
        assert connection.execute(text(statement), values).rowcount == 1, statement


def _paged() -> list[Step]:
    """The steps whose pages the verification holds against sums."""
    return [
        step for step in current.migration().steps_of(VERIFICATION) if step.stage != VERIFICATION
    ]


def _check(context: Context, steps: Iterable[Step | _Untallied]) -> set[Difference]:
    for step in steps:
        verify.check(context, VERIFICATION, step, EVERYTHING)  # type: ignore[arg-type]
    columns = "kind, entity, legacy_key, target_table, detail"
    rows = context.connection.execute(text(f"SELECT {columns} FROM migration.differences"))
    return {tuple(row) for row in rows}


def _matches(context: Context, step: Step) -> bool:
    account = step.account(context, EVERYTHING)
    if not account:
        return True
    row = context.connection.execute(text(account), context.parameters).one()
    return bool(row.matches)
