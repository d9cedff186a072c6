"""The console in the browser: runs, their progress, what failed, and the buttons of an operator.

Server-rendered, over what the command line uses: `producer.reports` reads, `producer.runs.control`
acts. Every page fetches a bounded number of rows, however large the run. Lists also count
their rows, and only a report, a CSV, a check and a repair may read whole tables.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Flask, Response, abort, redirect, render_template, request, session, url_for
from flask_wtf.csrf import CSRFError, CSRFProtect
from jinja2 import PackageLoader, StrictUndefined
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException, SecurityError
from werkzeug.wrappers import Response as AnyResponse

from models.errors import UnknownRun
from models.postgres.database import classify, name_of
from models.settings import Settings
from producer.console import actions, login, pages
from producer.console.context import Console
from producer.console.login import Passwords
from producer.reports import html, live_view

SESSION_HOURS = 8
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def create(
    engine: Engine, settings: Settings, passwords: Passwords, *, hosts: list[str] | None
) -> Flask:
    """The application. `hosts` are the names that it answers to on a loopback address.

    None: it is reached from elsewhere, by any name, and its cookie is for TLS only.
    """
    app = Flask("producer", static_folder=None)
    app.extensions["console"] = Console(engine, settings)
    app.config.update(
        # A session ends with the process.
        SECRET_KEY=secrets.token_bytes(32),
        SESSION_COOKIE_NAME="migration_console",
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_COOKIE_SECURE=hosts is None,
        PERMANENT_SESSION_LIFETIME=timedelta(hours=SESSION_HOURS),
        # A tab that is left open loads its page again and again: that must not prolong the session.
        SESSION_REFRESH_EACH_REQUEST=False,
        # A form lives as long as its session.
        WTF_CSRF_TIME_LIMIT=None,
        MAX_CONTENT_LENGTH=64 * 1024,
        # Another site must not reach it by a name of its own that leads here.
        TRUSTED_HOSTS=hosts,
    )
    app.jinja_loader = PackageLoader("producer", "pages")
    app.jinja_options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    app.jinja_env.filters |= html.FILTERS
    app.jinja_env.globals |= {"display": live_view, "database": name_of(engine)}
    app.context_processor(_of_every_page)
    CSRFProtect(app)
    _guard(app)
    for routes in (login.routes(passwords), pages.routes, actions.routes):
        app.register_blueprint(routes)
    return app


def _of_every_page() -> dict[str, Any]:
    return {"is_operator": login.is_operator(), "now": datetime.now(UTC)}


def _guard(app: Flask) -> None:
    """Nothing without a login, no page without its headers, no traceback to anybody."""

    def page(title: str, message: str, status: int) -> tuple[str, int]:
        return render_template("trouble.html", title=title, message=message), status

    @app.before_request
    def require_login() -> AnyResponse | tuple[str, int] | None:
        if isinstance(request.routing_exception, SecurityError):
            raise request.routing_exception
        if request.blueprint == "login":
            return None
        if "name" not in session:
            return redirect(url_for("login.login"))
        if request.blueprint == "actions" and not login.is_operator():
            return page("Not done", "You are logged in as a reader, who changes nothing.", 403)
        given = [
            *(request.view_args or {}).values(),
            *(key for _, key in request.form.items(multi=True)),
        ]
        if any("\0" in str(text) for text in given):
            # PostgreSQL stores no such letter: there is no such run, and no such row.
            abort(404)
        return None

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

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
