"""The Celery application of the workers: tasks, queues, and what a process does when it starts."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import structlog
from celery.signals import (
    setup_logging,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
)

from models.settings import unknown
from producer import connect, logs, tracing
from producer.broker import transport
from producer.broker.queue import app
from producer.notices import send as notices
from producer.runs.reconciler import Reconciler
from worker import flower

__all__ = ["app"]

app.conf.imports = ("worker.tasks",)
app.conf.worker_consumer = "worker.consumer:Consumer"
transport.use("worker.message_filter:Transport")

logs.install()
for line in unknown():
    print(f"Warning: {line}", file=sys.stderr)
flower.prepare(connect.settings().base)
tracing.require(connect.settings().base)
notices.require(connect.settings().base)

# Celery warns of each result that it could not write, and then logs it as the error that it is.
warnings.filterwarnings("ignore", "Exception raised outside body", RuntimeWarning)

_reconcilers: list[Reconciler] = []


@setup_logging.connect
def _log_in_lines(loglevel: int | str | None = None, **_: Any) -> None:
    level = loglevel if isinstance(loglevel, int) else logging.INFO
    fields = ["timestamp", "level", "event"]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if connect.settings().base.log_format == "json"
        else structlog.processors.LogfmtRenderer(key_order=fields, drop_missing=True)
    )
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[logs.once, *shared, logs.render, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=logs.whole_lines(sys.stdout),
    )
    # Celery and the libraries log by the standard library: their lines have the same form.
    handler = logging.StreamHandler()
    handler.addFilter(logs.is_new)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                logs.render,
                renderer,
            ],
        )
    )
    logging.basicConfig(level=level, handlers=[handler])


@worker_process_init.connect
def _forget_the_parents_connections(**_: Any) -> None:
    # A pool that crossed the fork shares its sockets with the parent: leave them unclosed to it.
    connect.engine().dispose(close=False)


@worker_process_shutdown.connect
def _send_the_last_traces(**_: Any) -> None:
    tracing.flush()


@worker_ready.connect
def _start_reconciler(**_: Any) -> None:
    reconciler = Reconciler(connect.engine(), connect.settings().base)
    reconciler.start()
    _reconcilers.append(reconciler)


@worker_shutdown.connect
def _stop_reconciler(**_: Any) -> None:
    while _reconcilers:
        _reconcilers.pop().stop()
