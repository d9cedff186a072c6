"""Errors in logs and on terminals: types and places. Texts that are not ours may quote secrets."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import MutableMapping
from typing import Any

from models.errors import MigrationError
from producer.broker.refusals import is_of_redis, of_redis


class Log:
    """A structured log, whose library is imported at the first line: most commands write none.

    Lines go to stderr without a foreign text, unless the process configured it otherwise.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, level: str) -> Any:
        import structlog

        if not structlog.is_configured():
            structlog.configure(
                processors=[render, *structlog.get_config()["processors"]],
                logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
            )
        return getattr(structlog.get_logger(self._name), level)


def name_of(failure: BaseException) -> str:
    """An error as it may be shown: ours with its message, another by its type."""
    kind = f"{type(failure).__module__}.{type(failure).__qualname__}".removeprefix("builtins.")
    if isinstance(failure, MigrationError):
        return f"{kind}: {failure.message}"
    if is_of_redis(failure):
        return f"{kind}: {of_redis(failure)}"
    return kind


def places(failure: BaseException) -> str:
    """Where an error was raised, and what kinds of error led to it."""
    before = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)
    lines = [places(before)] if before is not None else []
    lines += [line.rstrip("\n") for line in traceback.format_tb(failure.__traceback__)]
    return "\n".join([*lines, name_of(failure)])


def install() -> None:
    """From now on no log record of this process, and no unhandled error, shows a foreign text."""
    logging.setLogRecordFactory(_record)
    sys.excepthook = lambda _kind, failure, _trace: _say(failure)
    threading.excepthook = lambda given: _say(given.exc_value) if given.exc_value else None


def render(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog's processor: the error as text, before any other could write it out."""
    failure = event.pop("exc_info", None)
    if failure is True:
        failure = sys.exc_info()
    if isinstance(failure, tuple):
        failure = failure[1]
    if isinstance(failure, BaseException):
        event["exception"] = places(failure)
    return event


def _say(failure: BaseException) -> None:
    print(places(failure), file=sys.stderr)


def _record(*values: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*values, **more)
    failure = record.exc_info[1] if record.exc_info else None
    if failure is not None:
        # Formatters take this instead of making their own.
        record.exc_text = places(failure)
    if isinstance(record.msg, BaseException):
        record.msg = name_of(record.msg)
    if isinstance(record.args, dict):
        record.args = {key: _shown(value) for key, value in record.args.items()}
        if failure is not None and "exc" in record.args:
            # Celery's report of a task: the same error as text, twice.
            record.args |= {"exc": name_of(failure), "traceback": ""}
    elif record.args:
        record.args = tuple(map(_shown, record.args))
    return record


def _shown(value: Any) -> Any:
    return name_of(value) if isinstance(value, BaseException) else value
