"""Columns of the same table, filled in place; bigint keys that are not called id."""

import sqlalchemy as sa

from models.engine.api import Copy, Expect, Fill, Migration, Reject, Source

METADATA = sa.MetaData()
sa.Table("accounts", METADATA, sa.Column("plan", sa.String), sa.Column("is_open", sa.Boolean))


class Accounts(Copy):
    """Accounts get a plan by their seats, and are open."""

    source = Source("account", key="number", reads=("seats",), writes=("plan",))
    rejects = (Reject("seats_negative", "s.seats < 0", "The seats are below zero."),)
    fills = Fill(plan="CASE WHEN s.seats > 10 THEN 'team' ELSE 'single' END", is_open="true")
    expects = (
        Expect(
            "accounts",
            "SELECT s.number AS source_key, s.number, true AS is_open,"
            " (ARRAY['single', 'team'])[1 + (coalesce(s.seats, 0) >= 11)::int] AS plan"
            " FROM {accounts} s WHERE s.seats >= 0 OR s.seats IS NULL",
            key="number",
        ),
    )


MIGRATION = Migration("accounts", [Accounts()], schema=METADATA)
