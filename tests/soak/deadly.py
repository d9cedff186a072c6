"""The workers' Celery app, in which some rows kill the process that comes to them."""

from __future__ import annotations

import os
import signal

from sqlalchemy import text

from models.dashboard.users.apply import Users
from models.engine.step import Context, Counts, Scope
from worker import celery

__all__ = ["celery"]

_apply = Users.apply


def _die_at_some(self: Users, context: Context, scope: Scope) -> Counts:
    condition = scope.condition("p.key", "text")
    deadly = text(f"SELECT count(*) FROM poison p WHERE p.kind = 'deadly' AND {condition}")
    if context.connection.scalar(deadly, scope.parameters):
        os.kill(os.getpid(), signal.SIGKILL)
    return _apply(self, context, scope)


Users.apply = _die_at_some  # type: ignore[method-assign]
