"""Where a fault strikes inside the product's processes, without any hook in the product.

`before_the_product` and `after_the_product` wrap functions of the product, Celery and kombu by
name; each calls `reached(point)`. What happens there stands in the file of tickets that
FAULT_TICKETS names: all processes share it, so that a ticket is used exactly once.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Before `clocks` may bend it.
_now = time.time
_main = os.getpid()
_marks = threading.local()


def reached(point: str, batch: int | None = None) -> bool:
    """Use a ticket for this point, if there is one whose turn it is; says whether it was used."""
    path = os.environ.get("FAULT_TICKETS")
    act = path and _take(Path(path), point, batch)
    if not act:
        return False
    if act == "child":
        os.kill(os.getpid(), signal.SIGKILL)
    elif act == "main":
        os.kill(_main, signal.SIGKILL)
    elif act == "worker":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif act == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    return True


def _take(path: Path, point: str, batch: int | None) -> str | None:
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return _take_from(file, path, point, batch)
        finally:
            # Closing is not enough: a child that another thread forks meanwhile has it open too.
            file.flush()
            fcntl.flock(file, fcntl.LOCK_UN)


def _take_from(file: TextIO, path: Path, point: str, batch: int | None) -> str | None:
    tickets = json.load(file)
    for ticket in tickets:
        if ticket["point"] == point and ticket["left"]:
            if ticket["batch"] not in (None, batch):
                return None
            if ticket["skip"]:
                ticket["skip"] -= 1
                act = None
            else:
                ticket["left"] -= 1
                ticket["batch"] = batch if ticket["same_batch"] else None
                act = str(ticket["act"])
                note(path, point=point, time=_now(), pid=os.getpid())
            file.seek(0)
            file.truncate()
            json.dump(tickets, file)
            return act
    return None


def note(path: Path, **values: object) -> None:
    """Add a line to the file of what happened, beside the tickets."""
    with path.with_name("happened").open("a") as file:
        file.write(json.dumps(values) + "\n")


def wrap(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put `make(the function)` in the function's place."""
    setattr(owner, name, make(getattr(owner, name)))


def before_the_product() -> None:
    """Wrap what the product's modules import by name; none of them may be loaded yet."""
    global _main
    _main = os.getpid()
    from celery.app.amqp import AMQP
    from celery.backends.redis import RedisBackend
    from kombu.transport.redis import Channel, QoS
    from sqlalchemy.engine.default import DefaultDialect

    from models.ledger import claims
    from models.postgres import database, limited

    limited.ASK_SECONDS = float(os.environ.get("FAULT_ASK_SECONDS", limited.ASK_SECONDS))
    wrap(claims, "claim", _around_claim)
    wrap(claims, "complete", _around_complete)
    wrap(database, "transaction", _around_transaction)
    wrap(RedisBackend, "on_chord_part_return", lambda real: _around(real, "count", _is_part))
    wrap(AMQP, "_retry_publish", lambda real: _around(real, "body", lambda *_: True))
    wrap(QoS, "append", lambda real: _around(real, "record", lambda *_: True))
    wrap(Channel, "_put", _around_put)
    wrap(DefaultDialect, "do_execute", lambda real: _around(real, "sql", lambda *_: True))
    import producer.broker.queue as queue

    wrap(queue, "publish_window", lambda real: _around(real, "window", lambda *_: True))


def after_the_product() -> None:
    """Wrap what the product calls by its module's name."""
    import worker.batch

    def around_run(real: Any) -> Any:
        def run(*args: Any, **values: Any) -> Any:
            _marks.struck = False
            outcome = real(*args, **values)
            if _marks.struck:
                note(Path(os.environ["FAULT_TICKETS"]), outcome=outcome)
            return outcome

        return run

    wrap(worker.batch, "run", around_run)


def _around(real: Any, point: str, applies: Callable[..., bool]) -> Any:
    def around(*args: Any, **values: Any) -> Any:
        if not applies(*args):
            return real(*args, **values)
        reached(f"before-{point}")
        result = real(*args, **values)
        reached(f"after-{point}")
        return result

    return around


def _is_part(_backend: Any, request: Any, *_: Any) -> bool:
    return bool(request.group)


def _around_claim(real: Any) -> Any:
    def claim(*args: Any, **values: Any) -> Any:
        reached("before-claim")
        found = real(*args, **values)
        if found is not None:
            _seen().add("claimed")
            _marks.batch = getattr(found, "batch_id", None)
        return found

    return claim


def _around_complete(real: Any) -> Any:
    def complete(*args: Any, **values: Any) -> Any:
        _marks.struck = reached("after-statement") or getattr(_marks, "struck", False)
        real(*args, **values)
        _seen().add("completed")

    return complete


def _seen() -> set[str]:
    """What the transaction that is open in this thread has done."""
    found: set[str] = getattr(_marks, "seen", set())
    return found


def _around_transaction(real: Any) -> Any:
    @contextmanager
    def transaction(*args: Any, **limits: Any) -> Iterator[Any]:
        outer, seen = _seen(), set[str]()
        _marks.seen = seen
        if "FAULT_STATEMENT_MS" in os.environ:
            limits["statement_timeout_ms"] = int(os.environ["FAULT_STATEMENT_MS"])
        with real(*args, **limits) as connection:
            yield connection
            if "completed" in seen:
                reached("before-commit")
        _marks.seen = outer
        if "claimed" in seen:
            _marks.struck = reached("after-claim", _marks.batch)
        if "completed" in seen:
            reached("after-commit")

    return transaction


def _around_put(real: Any) -> Any:
    def put(channel: Any, queue: str, message: Any, **values: Any) -> Any:
        reached("before-message")
        copies = [message]
        if os.environ.get("FAULT_TWICE"):
            properties = message["properties"] | {"delivery_tag": str(uuid.uuid4())}
            copies.append(message | {"properties": properties})
            random.shuffle(copies)
        for copy in copies:
            real(channel, queue, copy, **values)

    return put
