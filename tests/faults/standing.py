"""Where a run stands, for whoever has to find out why it stands there."""

from __future__ import annotations

from sqlalchemy import text

from tests.faults.site import QUEUES, Site


def waiting(site: Site) -> int:
    """Messages in the queues."""
    return sum(
        int(site.redis.llen(name))
        for name in site.redis.keys(QUEUES)
        if site.redis.type(name) == "list"
    )


def standing(site: Site) -> str:
    """What of the run is not done, in a line."""
    with site.engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT b.stage, b.step, b.state, count(*), max(b.attempt) AS attempt,"
                " max(b.error) AS error FROM migration.batches b GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
            )
        ).all()
        run = connection.execute(text("SELECT state, error FROM migration.runs")).all()
    still = [tuple(row) for row in rows if row.state != "done"]
    return f"run {[tuple(row) for row in run]}, batches {still}, {waiting(site)} messages"
