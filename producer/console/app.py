"""The console in the browser: runs, their progress, what failed, and the buttons of an operator.

Server-rendered, over what the command line uses: `report` and `record` read, `control` acts. All
queries are bounded, however large the run.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from importlib import resources
from typing import Any

import sqlalchemy as sa
from flask import (
    Flask,
    Response,
    abort,
    flash,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask_wtf.csrf import CSRFError, CSRFProtect
from jinja2 import PackageLoader, StrictUndefined
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.wrappers import Response as AnyResponse

from models.errors import MigrationError, UnknownRun
from models.ledger import audit
from models.ledger.tables import COMPLETED_STATES, WORKED_ON, batches
from models.postgres.database import classify, name_of, transaction
from models.settings import Settings
from producer.logs import Log
from producer.reports import history, html, live_view
from producer.reports import status as report
from producer.runs import control

ATTEMPTS_A_MINUTE = 5
SESSION_HOURS = 8
MOST_RUNS, MOST_FAILED, MOST_KEYS, MOST_EVENTS = 50, 50, 20, 30
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# What an operator may do to a run in each state, in the order of the buttons.
ACTIONS = {
    "pause": ("preparing", "running"),
    "resume": ("paused", "cancelled"),
    "retry": ("failed", *COMPLETED_STATES),
    "cancel": ("preparing", "running", "paused"),
}
_ASSETS = {"style.css": "text/css", "console.css": "text/css", "live.js": "text/javascript"}
_OPEN_TO_ALL = ("login", "asset")
log = Log("migration.console")


def create(engine: Engine, settings: Settings, password: str, *, hosts: list[str] | None) -> Flask:
    """The application. `hosts` are the names that it answers to on a loopback address.

    None: it is reached from elsewhere, by any name, and its cookie is for TLS only.
    """
    app = Flask("producer", static_folder=None)
    app.config.update(
        # A session ends with the process.
        SECRET_KEY=secrets.token_bytes(32),
        SESSION_COOKIE_NAME="migration_console",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_SECURE=hosts is None,
        PERMANENT_SESSION_LIFETIME=timedelta(hours=SESSION_HOURS),
        # A form lives as long as its session.
        WTF_CSRF_TIME_LIMIT=None,
        MAX_CONTENT_LENGTH=64 * 1024,
        # Another site must not reach it by a name of its own that leads here.
        TRUSTED_HOSTS=hosts,
    )
    app.jinja_loader = PackageLoader("producer", "pages")
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    app.jinja_env.filters |= html.FILTERS
    app.jinja_env.globals |= {
        "display": live_view,
        "STATES": html.STATES,
        "database": name_of(engine),
    }
    CSRFProtect(app)
    _guard(app)
    _log_in_and_out(app, password)
    _show(app, engine)
    _act(app, engine, settings)
    return app


def _guard(app: Flask) -> None:
    """Nothing without a login, no page without its headers, no traceback to anybody."""

    @app.before_request
    def require_login() -> AnyResponse | None:
        if request.endpoint in _OPEN_TO_ALL or "name" in session:
            return None
        if isinstance(request.routing_exception, SecurityError):
            raise request.routing_exception
        if request.endpoint == "progress":
            abort(401)
        return redirect(url_for("login"))

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    def page(title: str, message: str, status: int) -> tuple[str, int]:
        return render_template("trouble.html", title=title, message=message), status

    @app.errorhandler(CSRFError)
    def too_old(_: CSRFError) -> tuple[str, int]:
        return page("Not done", "The form was too old, or not ours. Go back and try again.", 400)

    @app.errorhandler(SecurityError)
    def foreign(_: SecurityError) -> tuple[str, int]:
        # There is no address to make a page's links from.
        return "The console does not answer to this name.", 400

    @app.errorhandler(UnknownRun)
    def no_run(error: UnknownRun) -> tuple[str, int]:
        return page(error.message, error.hint, 404)

    @app.errorhandler(DBAPIError)
    def no_database(failure: DBAPIError) -> tuple[str, int]:
        message = classify(failure).message
        return page("The database does not answer", f"{message}. Reload the page later.", 503)

    @app.errorhandler(HTTPException)
    def other(error: HTTPException) -> tuple[str, int]:
        return page(error.name, error.description or "", error.code or 500)


def _log_in_and_out(app: Flask, password: str) -> None:
    limiter = MovingWindowRateLimiter(MemoryStorage())
    limit = RateLimitItemPerMinute(ATTEMPTS_A_MINUTE)

    @app.route("/login", methods=["GET", "POST"])
    def login() -> Any:
        if request.method == "GET":
            return render_template("login.html", wrong="")
        who = request.remote_addr or "?"
        if not limiter.test(limit, who):
            log.warning("login refused", origin=who)
            return render_template("login.html", wrong="Too many attempts. Wait a minute."), 429
        name = " ".join(request.form.get("name", "").split())[:64]
        if not _same(request.form.get("password", ""), password) or not name.isprintable():
            limiter.hit(limit, who)
            log.warning("login failed", origin=who)
            return render_template("login.html", wrong="That is not the password."), 403
        session.clear()
        session.permanent = True
        session["name"] = name or "console"
        log.info("login", origin=who)
        return redirect(url_for("home"), 303)

    @app.post("/logout")
    def logout() -> AnyResponse:
        session.clear()
        return redirect(url_for("login"), 303)

    @app.get("/assets/<name>")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            abort(404)
        text = (resources.files("producer") / "pages" / name).read_text(encoding="utf-8")
        return Response(text, mimetype=_ASSETS[name])


def _same(given: str, password: str) -> bool:
    """Compared in a time that tells nothing, of the length neither."""
    first, second = (hashlib.sha256(word.encode()).digest() for word in (given, password))
    return hmac.compare_digest(first, second)


def _show(app: Flask, engine: Engine) -> None:
    @app.get("/")
    def home() -> str:
        try:
            runs = report.history(engine, MOST_RUNS)
        except UnknownRun:
            runs = []
        return render_template("runs.html", runs=runs)

    @app.get("/runs/<run_id>")
    def run(run_id: str) -> str:
        found = report.look(engine, run_id)
        if found.live is None:
            # It stands still: there is time to add up what was counted.
            found = report.read(engine, found.run_id)
        assert found.run_id
        with transaction(engine) as connection:
            failed = connection.execute(
                sa.select(
                    *(batches.c.id, batches.c.stage, batches.c.attempt, batches.c.worker),
                    *(batches.c.error, batches.c.finished_at),
                )
                .where(batches.c.run_id == found.run_id, batches.c.state == "failed")
                .order_by(batches.c.id)
                .limit(MOST_FAILED)
            ).all()
            reasons = history.reasons(connection, found.run_id, MOST_KEYS)
            events = history.events(connection, found.run_id)[-MOST_EVENTS:]
        return render_template(
            "run.html",
            report=found,
            sentence="" if found.live else html.sentence(found),
            failed=failed,
            failed_in_all=sum(stage.batches.failed for stage in found.stages),
            reasons=reasons,
            differences=report.first_differences(engine, found.run_id),
            events=events[::-1],
            actions=[name for name, states in ACTIONS.items() if found.state in states],
            is_live=found.state in WORKED_ON,
        )

    @app.get("/runs/<run_id>/progress")
    def progress(run_id: str) -> Response:
        """What changes while somebody looks, as a part of a page."""
        found = report.look(engine, run_id)
        response = Response(render_template("progress.html", report=found))
        response.headers["X-Run-State"] = found.state or ""
        return response


def _act(app: Flask, engine: Engine, settings: Settings) -> None:
    @app.post("/runs/<run_id>/<any(pause, resume, retry, cancel):action>")
    def act(run_id: str, action: str) -> AnyResponse:
        with audit.acting(f"{session['name']} (console)", f"console/{request.remote_addr}"):
            try:
                if action in ("resume", "retry"):
                    getattr(control, action)(engine, settings, run_id)
                else:
                    getattr(control, action)(engine, run_id)
                flash(f"Done: {action}.")
            except MigrationError as error:
                flash(f"{error.message}. {error.hint}")
        log.info("action", action=action, run=run_id)
        return redirect(url_for("run", run_id=run_id), 303)
