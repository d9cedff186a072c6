"""Errors in logs and on terminals: types and places. Texts that are not ours may quote secrets.

A server that is away is no error of ours: it is said without a traceback, once, then as a count.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, TextIO

from models.errors import MigrationError
from producer import outage
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
                logger_factory=whole_lines(sys.stderr),
            )
        return getattr(structlog.get_logger(self._name), level)


def whole_lines(stream: TextIO) -> Callable[..., Any]:
    """A factory of loggers that write each line and its end at once.

    The processes of one worker share the stream, and where it is unbuffered, as in the image, what
    is written in two parts is torn apart by another's line.
    """
    import structlog

    return lambda *_: structlog.WriteLogger(stream)


# Libraries that say again and again, and number it, that a server is away.
_REPEATING = ("kombu", "celery.worker.consumer", "celery.backends")
_NUMBERS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4,12}){4}|\d+(\.\d+)?")
_repeats = outage.Repeats()


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


def once(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Structlog's processor: a warning with the same error as before is counted, not repeated."""
    import structlog

    if method == "warning" and "error" in event:
        unsaid = _repeats.unsaid(str(event["error"]))
        if unsaid is None:
            raise structlog.DropEvent
        if unsaid:
            event["repeated"] = unsaid
    return event


def is_new(record: logging.LogRecord) -> bool:
    """The same as a filter, for what libraries log of servers that are away."""
    is_away = getattr(record, "is_away", False) or record.name.startswith(_REPEATING)
    if record.levelno < logging.WARNING or not is_away:
        return True
    unsaid = _repeats.unsaid(f"{record.name}: {_NUMBERS.sub('#', record.getMessage())}")
    if unsaid:
        record.msg, record.args = f"{record.getMessage()} ({unsaid} times more)", ()
    return unsaid is not None


def _say(failure: BaseException) -> None:
    print(places(failure), file=sys.stderr)


def _record(*values: Any, **more: Any) -> logging.LogRecord:
    record = logging.LogRecord(*values, **more)
    failure = record.exc_info[1] if record.exc_info else None
    record.is_away = _is_away(failure) or any(map(_is_away, _values(record.args)))
    if isinstance(record.msg, BaseException):
        record.msg = name_of(record.msg)
    if failure is not None and _is_away(failure):
        record.exc_info = None
        record.msg = f"{record.msg} ({name_of(failure)})"
    elif failure is not None:
        # Formatters take this instead of making their own.
        record.exc_text = places(failure)
    if isinstance(record.args, dict):
        record.args = {key: _shown(value) for key, value in record.args.items()}
        if failure is not None and "exc" in record.args:
            # Celery's report of a task: the same error as text, twice.
            record.args |= {"exc": name_of(failure), "traceback": ""}
    elif record.args:
        record.args = tuple(map(_shown, record.args))
    return record


def _is_away(value: object) -> bool:
    if not isinstance(value, BaseException) or isinstance(value, OSError):
        return False
    return outage.cause(value) is not None


def _values(args: Any) -> Iterable[object]:
    return args.values() if isinstance(args, Mapping) else args or ()


def _shown(value: Any) -> Any:
    return name_of(value) if isinstance(value, BaseException) else value
