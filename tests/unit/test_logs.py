"""A log shows types and places of errors; a text that is not ours is nowhere in it."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError

from models.errors import Misconfigured
from producer import logs

SECRET = "redis://:Geheim77@h"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a logger of Celery's or Kombu's writes."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    logs.install()
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("foreign")
    logger.addHandler(handler)
    yield written
    logger.removeHandler(handler)
    logging.setLogRecordFactory(factory)


def fail() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as cause:
        raise ConnectionError(f"Cannot connect to {SECRET}") from cause


def test_errors_among_the_arguments_are_named_by_type(stream: io.StringIO) -> None:
    log = logging.getLogger("foreign")
    failure = ConnectionError(SECRET)
    log.error("consumer: Cannot connect to %s: %s.\n%r", "h", failure, failure)
    log.error("task failed: %(exc)s", {"exc": failure})
    log.error(failure)
    assert SECRET not in stream.getvalue()
    assert stream.getvalue().count("ConnectionError") == 4


def test_a_traceback_has_types_and_places(stream: io.StringIO) -> None:
    log = logging.getLogger("foreign")
    try:
        fail()
    except ConnectionError:
        log.exception("it broke")
        # As Celery reports a task: the error as text among the arguments, and as itself.
        log.error("%(exc)s %(traceback)s", {"exc": SECRET, "traceback": SECRET}, exc_info=True)
    said = stream.getvalue()
    assert SECRET not in said
    assert "test_logs.py" in said and "KeyError" in said and "ConnectionError" in said


def test_our_own_errors_keep_their_words(stream: io.StringIO) -> None:
    logging.getLogger("foreign").warning("%s", Misconfigured("REDIS_URL is missing"))
    assert "REDIS_URL is missing" in stream.getvalue()


def test_structlog_and_unhandled_errors_too(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str]
) -> None:
    event: Any = {"event": "it broke", "exc_info": True}
    try:
        fail()
    except ConnectionError as failure:
        shown = str(logs.render(None, "error", event))
        sys.excepthook(type(failure), failure, failure.__traceback__)
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    said = shown + capsys.readouterr().err
    assert SECRET not in said
    assert said.count("\nConnectionError\n") >= 2 and "KeyError" in shown


def test_a_server_that_is_away_is_said_once_and_without_a_traceback(stream: io.StringIO) -> None:
    log = logging.getLogger("kombu.test")
    (handler,) = logging.getLogger("foreign").handlers
    log.addHandler(handler)
    handler.addFilter(logs.is_new)
    for number in range(50):
        try:
            raise RedisConnectionError("Connection refused")
        except RedisConnectionError:
            log.exception("Cannot connect, %d/100", number)
    log.removeHandler(handler)
    said = "(redis.exceptions.ConnectionError: connection refused: no server listens there)"
    assert stream.getvalue() == f"ERROR Cannot connect, 0/100 {said}\n"


def test_a_warning_with_the_same_error_is_counted() -> None:
    event = {"event": "reconciler waits", "error": "The database cannot be used now: test"}
    assert logs.once(None, "warning", event | {"batch": 1})["batch"] == 1
    with pytest.raises(structlog.DropEvent):
        logs.once(None, "warning", event | {"event": "batch released", "batch": 2})
    assert logs.once(None, "error", event | {"batch": 3})["batch"] == 3


def test_a_line_and_its_end_are_written_at_once() -> None:
    # Where the stream is unbuffered, as in the image, each write is one of the system's.
    written: list[str] = []
    shared = io.StringIO()
    shared.write = written.append  # type: ignore[method-assign,assignment]
    logs.whole_lines(shared)().info("first")
    assert written == ["first\n"]
