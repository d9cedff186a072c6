"""Who may see the console, and who may act: a password for operators, and one for readers."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from importlib import resources
from typing import Any

from flask import Blueprint, Response, abort, redirect, render_template, request, session, url_for
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from werkzeug.wrappers import Response as AnyResponse

from producer.logs import Log

ATTEMPTS_A_MINUTE = 5
OPERATOR, READER = "operator", "reader"
_ASSETS = {"style.css": "text/css", "console.css": "text/css", "live.js": "text/javascript"}
log = Log("migration.console")


@dataclass(frozen=True)
class Passwords:
    """The passwords of both roles; without a reader's, there are operators only."""

    operator: str
    reader: str | None = None

    def role(self, given: str) -> str | None:
        """The role that a password belongs to. Takes a time that tells nothing of any of them."""
        roles = {OPERATOR: self.operator, READER: self.reader}
        matches = [name for name, word in roles.items() if _same(given, word or "") and word]
        return matches[0] if matches else None


def _same(given: str, password: str) -> bool:
    first, second = (hashlib.sha256(word.encode()).digest() for word in (given, password))
    return hmac.compare_digest(first, second)


def is_operator() -> bool:
    """Whether who is logged in may change anything."""
    return session.get("role") == OPERATOR


def routes(passwords: Passwords) -> Blueprint:
    """The pages that need no login: the login itself, and what it looks like."""
    found = Blueprint("login", __name__)
    limiter = MovingWindowRateLimiter(MemoryStorage())
    limit = RateLimitItemPerMinute(ATTEMPTS_A_MINUTE)

    @found.route("/login", methods=["GET", "POST"])
    def login() -> Any:
        if request.method == "GET":
            return render_template("login.html", wrong="")
        who = request.remote_addr or "?"
        if not limiter.test(limit, who):
            log.warning("login refused", origin=who)
            return render_template("login.html", wrong="Too many attempts. Wait a minute."), 429
        name = " ".join(request.form.get("name", "").split())[:64]
        role = passwords.role(request.form.get("password", ""))
        if role is None or not name.isprintable():
            limiter.hit(limit, who)
            log.warning("login failed", origin=who)
            return render_template("login.html", wrong="That is not the password."), 403
        session.clear()
        session.permanent = True
        session.update(name=name or "console", role=role)
        log.info("login", origin=who, role=role)
        return redirect(url_for("pages.home"), 303)

    @found.post("/logout")
    def logout() -> AnyResponse:
        session.clear()
        return redirect(url_for("login.login"), 303)

    @found.get("/assets/<name>")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            abort(404)
        text = (resources.files("producer") / "pages" / name).read_text(encoding="utf-8")
        return Response(text, mimetype=_ASSETS[name])

    return found
