"""The verdicts of `check` and `health`, and how each of their checks is run."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
from kombu.exceptions import OperationalError
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError
from models.postgres.database import classify
from models.reports.checks import Check
from producer.broker.refusals import of_redis
from producer.broker.snapshot import REDIS_ERRORS


def ok(found: str) -> Check:
    """Nothing is wrong."""
    return Check(verdict="ok", found=found)


def warning(found: str, hint: str) -> Check:
    """A run is possible, but the operator should know this."""
    return Check(verdict="warning", found=found, hint=hint)


def unknown(found: str, hint: str = "") -> Check:
    """It cannot be seen from here."""
    return Check(verdict="unknown", found=found, hint=hint)


def failed(found: str, hint: str = "") -> Check:
    """It must be fixed first."""
    return Check(verdict="failed", found=found, hint=hint)


def look(name: str, check: Callable[[], Check], unanswered: Callable[[str], Check]) -> Check:
    """The named and timed verdict of a check; `unanswered` judges an error of the database."""
    started = time.monotonic()
    try:
        found = check()
    except DBAPIError as failure:
        found = unanswered(classify(failure).message)
    except MigrationError as error:
        found = failed(error.message, error.hint)
    except (*REDIS_ERRORS, redis.RedisError, OperationalError, OSError) as failure:
        found = failed(f"Redis does not answer: {of_redis(failure)}", "See REDIS_URL.")
    return found.model_copy(update={"name": name, "seconds": round(time.monotonic() - started, 3)})
