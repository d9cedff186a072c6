"""What an operator does in the console: each over the function of its command, in the audit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

from flask import Blueprint, flash, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response as AnyResponse

from models.errors import MigrationError
from models.ledger import audit
from models.ledger.tables import RECONCILIATION, VERIFICATION
from models.reports.words import number
from producer import repair as repairing
from producer import tracing
from producer.broker.snapshot import REDIS_ERRORS
from producer.checks import check as checks
from producer.console import asked
from producer.console.context import here
from producer.doctor import examine as doctor
from producer.logs import Log
from producer.reports import status as report
from producer.reports.lists import QUARANTINE
from producer.runs import acceptance, advance, begin, control
from producer.runs import rollback as undo

T = TypeVar("T")
routes = Blueprint("actions", __name__)
log = Log("migration.console")

_NEXT_IS_RETRY = "Next: press Retry on the page of the run."
_DONE = {
    "pause": "Paused: no further batch starts, and running ones end.",
    "resume": "Resumed: workers continue, and try failed batches again.",
    "cancel": "Cancelled: what was written stays. Resume continues the run.",
    "retry": "Retrying failed batches, and rows that are quarantined or differ.",
    VERIFICATION: "Verifying: every row is compared again.",
    RECONCILIATION: "The reconciliation runs again.",
}


def _attempt(action: str, run_id: str, what: Callable[[], T]) -> T | None:
    """Do it under the name of who is logged in; None where it failed, which the page then says."""
    log.info("action", action=action, run=run_id)
    with audit.acting(f"{session['name']} (console)", f"console/{request.remote_addr}"):
        try:
            return what()
        except MigrationError as error:
            flash(f"{error.message}. {error.hint}", "bad")
        except REDIS_ERRORS:
            flash("Noted in the ledger. Redis does not answer: the run continues when it does.")
    return None


def _back(run_id: str) -> AnyResponse:
    return redirect(url_for("pages.run", run_id=run_id), 303)


@routes.post(
    "/runs/<run_id>/<any(pause, resume, retry, cancel, verification, reconciliation):action>"
)
def act(run_id: str, action: str) -> AnyResponse:
    """Pause, resume, retry, cancel, verify or reconcile a run."""
    engine, settings = here().engine, here().settings

    def do() -> str:
        if action in (VERIFICATION, RECONCILIATION):
            return control.check_again(engine, settings, run_id, action)
        if action in ("resume", "retry"):
            return str(getattr(control, action)(engine, settings, run_id))
        return str(getattr(control, action)(engine, run_id))

    if _attempt(action, run_id, do):
        flash(_DONE[action])
    return _back(run_id)


@routes.post("/runs/<run_id>/batches/<int:batch_id>/retry")
def retry_batch(run_id: str, batch_id: int) -> AnyResponse:
    """Try one failed batch again."""
    engine, settings = here().engine, here().settings
    if _attempt("retry", run_id, lambda: control.retry_batch(engine, settings, run_id, batch_id)):
        flash(f"Batch {batch_id} is tried again.")
    return _back(run_id)


@routes.post("/runs/<run_id>/quarantine")
def accept(run_id: str) -> AnyResponse:
    """Accept quarantined rows, or take that back: those that are chosen, or all of a reason."""
    takes_back = request.form.get("do") == "unaccept"
    keys, reason = request.form.getlist("key"), request.form.get("reason")
    changed = _attempt(
        "unaccept" if takes_back else "accept",
        run_id,
        lambda: acceptance.accept(
            *(here().engine, here().settings, run_id, keys), reason=reason, takes_back=takes_back
        ),
    )
    if changed is not None:
        done = "no longer accepted" if takes_back else "accepted"
        flash(f"{number(changed, 'row')} {done}, dependent rows included. {_NEXT_IS_RETRY}")
    arguments: dict[str, Any] = asked.read(QUARANTINE, request.args).address()
    return redirect(url_for("pages.listing", run_id=run_id, name="quarantine", **arguments), 303)


@routes.get("/runs/<run_id>/rollback")
def rollback_page(run_id: str) -> Any:
    """What a rollback of the run would undo, and the form that asks for the run's id."""
    engine = here().engine
    found = report.look(engine, run_id)
    is_again = found.state == "rolled_back"
    chosen = _attempt("look", run_id, lambda: undo.targets(engine, found.run_id, force=is_again))
    if not chosen:
        return _back(run_id)
    older = [run for run in undo.left(engine) if run.id < chosen[0].id]
    return render_template("rollback.html", report=found, target=chosen[0], older=older)


@routes.post("/runs/<run_id>/rollback")
def rollback(run_id: str) -> AnyResponse:
    """Undo a run whose id was typed, whole."""
    engine, settings = here().engine, here().settings
    # The address may hold the beginning of an id, which must not do for the whole.
    run_id = report.look(engine, run_id).run_id or run_id
    force = request.form.get("force") == "yes"
    if request.form.get("typed", "").strip() != run_id:
        flash(f"Nothing was changed: to roll the run back, type its id, {run_id}", "bad")
        return redirect(url_for("actions.rollback_page", run_id=run_id), 303)
    if _attempt("rollback", run_id, lambda: undo.start(engine, settings, run_id, force=force)):
        flash("Rolling back. What it keeps is listed at the end.")
    return _back(run_id)


@routes.post("/runs/<run_id>/doctor")
def examine(run_id: str) -> Any:
    """Say what a run waits for, and fix what can be fixed."""
    engine, settings = here().engine, here().settings
    found = _attempt("doctor", run_id, lambda: doctor.examine(engine, settings, run_id))
    return render_template("doctor.html", found=found) if found else _back(run_id)


@routes.get("/repairs/<name>")
def repair_page(name: str) -> str:
    """A repair of the migration, before its first look."""
    return render_template("repair.html", name=name, found=None)


@routes.post("/repairs/<name>")
def repair(name: str) -> Any:
    """Show each change that a repair would make, or make them."""
    engine, settings = here().engine, here().settings
    is_dry = request.form.get("do") != "repair"
    found = _attempt(
        f"repair {name}",
        "",
        lambda: repairing.run(engine, settings, name, key=None, dry_run=is_dry, force=False),
    )
    return render_template("repair.html", name=name, found=found)


@routes.get("/start")
def start_page() -> str:
    """What comes before a run."""
    return render_template("start.html", checks=None)


@routes.post("/check")
def check() -> str:
    """What `producer check` finds, and the button that starts a run where nothing failed."""
    return render_template("start.html", checks=checks.examine(here().engine, here().settings))


@routes.post("/start")
def start() -> AnyResponse:
    """Open a run, or join the open one."""
    engine, settings = here().engine, here().settings

    def do() -> str:
        run_id, is_new = begin.begin(engine, settings)
        flash("Started." if is_new else "A run is open already: this is it.")
        with tracing.command(settings, "enqueue-all", run_id) if is_new else nullcontext():
            advance.begin(engine, settings, run_id)
        return run_id

    run_id = _attempt("enqueue-all", "", do)
    return _back(run_id) if run_id else redirect(url_for("pages.home"), 303)
