"""The pages that show: runs, a run, its lists, its report. They change nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from threading import Lock
from typing import Any

import sqlalchemy as sa
from flask import Blueprint, Response, abort, render_template, request
from sqlalchemy import Connection, Engine

from models.engine import current
from models.ledger.tables import (
    COMPLETED_STATES,
    RECONCILIATION,
    VERIFICATION,
    WORKED_ON,
    batches,
)
from models.postgres.database import transaction
from models.reports.run import RunReport
from producer.console import asked, presence
from producer.console.asked import Asked
from producer.console.context import here
from producer.reports import differing, history, html, lists, spreadsheet
from producer.reports import status as report
from producer.reports.lists import DIFFERENCES, QUARANTINE
from producer.runs import budget

MOST_FAILED, MOST_EVENTS = 50, 30
LISTS = {"quarantine": QUARANTINE, "differences": DIFFERENCES}
# What an operator may do to a run in each state, in the order of the buttons.
ACTIONS = {
    "pause": ("preparing", "running"),
    "resume": ("paused", "cancelled"),
    "retry": ("failed", *COMPLETED_STATES),
    VERIFICATION: ("failed", *COMPLETED_STATES),
    RECONCILIATION: ("failed", *COMPLETED_STATES),
    "cancel": ("preparing", "running", "paused"),
    "rollback": ("failed", "cancelled", *COMPLETED_STATES),
}
# It has inline styles, and no script, no form and nothing from elsewhere.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_reporting = Lock()
routes = Blueprint("pages", __name__)


@routes.get("/")
def home() -> str:
    """All runs, a page at a time."""
    found = lists.runs_page(here().engine, request.args.get("before", "").replace("\0", "") or None)
    return render_template(
        "runs.html", runs=found[: lists.PAGE_ROWS], has_more=len(found) > lists.PAGE_ROWS
    )


@routes.get("/runs/<run_id>")
def run(run_id: str) -> str:
    """A run: where it is, what failed, what happened."""
    engine = here().engine
    found = report.look(engine, run_id)
    if found.live is None:
        # It stands still: there is time to add up what was counted.
        found = report.read(engine, found.run_id)
    assert found.run_id
    with transaction(engine) as connection:
        failed = _failed(connection, found.run_id)
        reasons = history.reasons(connection, found.run_id, most_keys=0)
        events = history.events(connection, found.run_id)[-MOST_EVENTS:]
    seen = here().presence.seen() if found.state in WORKED_ON else None
    return render_template(
        "run.html",
        report=found,
        sentence="" if found.live else html.sentence(found),
        failed=failed,
        failed_in_all=sum(stage.batches.failed for stage in found.stages),
        may_retry_batch=found.state in WORKED_ON
        or (found.state == "failed" and "retry" in allowed(found)),
        reasons=reasons,
        differences=differing.first(engine, found.run_id),
        events=events[::-1],
        actions=allowed(found),
        is_live=found.state in WORKED_ON,
        by_budget=found.paused_by == budget.PAUSED_BY,
        seen=seen,
        workers=presence.attending(found, seen.workers if seen else []),
        alarm=presence.alarm(found, seen),
    )


def allowed(found: RunReport) -> list[str]:
    """The actions that the state of a run allows, in the order of the buttons."""
    names = [name for name, states in ACTIONS.items() if found.state in states]
    stages = current.migration().stages
    names = [name for name in names if name != RECONCILIATION or name in stages]
    if found.state == "paused" and found.paused_by == budget.PAUSED_BY:
        return ["retry", *names]
    undone = current.migration().undo_stages
    if any(stage.name in undone for stage in found.stages):
        # Its rollback has begun: that can continue, and undo by force what it kept.
        return ["rollback"] if found.state == "failed" or found.conflicts else []
    return names


def _failed(connection: Connection, run_id: str) -> list[sa.Row[Any]]:
    columns = batches.c
    wanted = (
        sa.select(
            *(columns.id, columns.stage, columns.attempt, columns.worker),
            *(columns.error, columns.finished_at),
        )
        .where(columns.run_id == run_id, columns.state == "failed")
        .order_by(columns.id)
        .limit(MOST_FAILED)
    )
    return list(connection.execute(wanted))


@routes.get("/runs/<run_id>/<any(quarantine, differences):name>")
def listing(run_id: str, name: str) -> str:
    """A page of the quarantined rows, or of the differences."""
    found, what = _asked(run_id, name)
    assert found.run_id
    page = lists.page(here().engine, LISTS[name], found.run_id, what.query)
    fixes = differing.fixes(page.rows) if name == "differences" else {}
    commands = " ".join(fixes.values())
    return render_template(
        "list.html",
        report=found,
        name=name,
        page=page,
        asked=what,
        fixes=fixes,
        repairs=[each for each in current.migration().repairs if f"repair {each}" in commands],
        may_retry="retry" in allowed(found),
    )


@routes.get("/runs/<run_id>/<any(quarantine, differences):name>.csv")
def listing_csv(run_id: str, name: str) -> Response:
    """All rows that the list finds, as CSV."""
    found, what = _asked(run_id, name)
    assert found.run_id
    lines = _csv(here().engine, found.run_id, what)
    response = Response(lines, mimetype="text/csv")
    file = f"{found.run_id}-{name}.csv"
    response.headers["Content-Disposition"] = f'attachment; filename="{file}"'
    return response


def _asked(run_id: str, name: str) -> tuple[RunReport, Asked]:
    return report.look(here().engine, run_id), asked.read(LISTS[name], request.args)


def _csv(engine: Engine, run_id: str, what: Asked) -> Iterator[str]:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(what.listing.columns))
    writer.writeheader()
    for row in lists.every(engine, what.listing, run_id, what.query):
        writer.writerow(spreadsheet.cells(row))
        if buffer.tell() > 64 * 1024:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


@routes.get("/runs/<run_id>/report")
def run_report(run_id: str) -> Response:
    """The report, as `producer report` writes it. One at a time: it may read whole tables."""
    if not _reporting.acquire(blocking=False):
        abort(429, "Another report is being made. Reload the page in a minute.")
    try:
        page = html.render(history.read(here().engine, here().settings, run_id))
    finally:
        _reporting.release()
    return Response(page, headers={"Content-Security-Policy": _REPORT_POLICY})
