"""Messages to people: once each, by a real receiver or command, and never in a run's way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from structlog.testing import capture_logs

from models.errors import Misconfigured
from models.settings import Settings
from models.window import NEXT_BATCH
from producer.notices import send
from producer.runs import advance, control, reconciler
from tests.driving import change, go_on, scalar, start
from tests.integration.test_error_budget import fail, go_on_until_users
from tests.wait import until

USERS, BATCH_SIZE = 40, 5
# apprise imports what Python 3.13 no longer has, where that is there.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
SECRET = "planted-Secret-7"
DUE_AGAIN = "UPDATE migration.notices SET next_at = now() WHERE sent_at IS NULL"


class Receiver(ThreadingHTTPServer):
    """Takes messages as JSON; it may refuse them, or not answer before it is told to."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.taken.append(json.loads(body))
                receiver.may_answer.wait()
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def titles(self) -> list[str]:
        return [message["title"] for message in self.taken]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.may_answer.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def told(settings: Settings, receiver: Receiver, tmp_path: Path) -> Settings:
    """Settings that send to the receiver, and to a command that writes a file."""
    url = f"json://me:{SECRET}@127.0.0.1:{receiver.server_port}/{SECRET}"
    return settings.model_copy(
        update={"notify_url": SecretStr(url), "notify_command": f"tee '{tmp_path / 'mail box'}'"}
    )


def rounds(engine: Engine, settings: Settings) -> None:
    """The reconcilers of four processes at once, and the messages that they send."""
    ticks = [threading.Thread(target=reconciler.tick, args=(engine, settings)) for _ in range(4)]
    for each in ticks:
        each.start()
    for each in ticks:
        each.join()
    reconciler.tick(engine, settings)
    sent()


def sent() -> None:
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith("notice")])


@pytest.mark.long
def test_an_end_is_told_once_by_each_channel(
    engine: Engine, told: Settings, receiver: Receiver, tmp_path: Path
) -> None:
    run_id = start(engine, told)
    rounds(engine, told)
    control.pause(engine, run_id)
    rounds(engine, told)
    control.resume(engine, told, run_id)
    assert receiver.taken == []
    go_on(engine, told, run_id)
    rounds(engine, told)
    rounds(engine, told)
    (message,) = receiver.taken
    database = scalar(engine, "SELECT current_database()")
    assert message["title"].startswith(f"Run {run_id} is completed_with_quarantine on ")
    assert database in message["title"] and message["type"] == "success"
    assert f"users {USERS} " in " ".join(message["message"].split())
    mail = (tmp_path / "mail box").read_text()
    assert mail.rstrip() == f"{message['title']}\n{message['message']}"
    assert scalar(engine, "SELECT count(*) FROM migration.notices WHERE sent_at IS NULL") == 0
    # Another end is told, too.
    control.check_again(engine, told, run_id, "verification")
    go_on(engine, told, run_id)
    rounds(engine, told)
    assert receiver.titles == [message["title"]] * 2


def test_a_pause_by_the_error_budget_is_told_with_its_error(
    engine: Engine, told: Settings, receiver: Receiver
) -> None:
    run_id = start(engine, told)
    go_on_until_users(engine, told, run_id)
    fail(engine, run_id, ["frozen"] * (USERS // BATCH_SIZE))
    advance.advance(engine, told, run_id)
    rounds(engine, told)
    (message,) = receiver.taken
    assert message["title"].startswith(f"Run {run_id} is paused on ")
    assert message["message"].startswith("8 batches failed with the same error")
    assert message["type"] == "warning"


@pytest.mark.parametrize("throttled_by", ["a standby lags", None])
def test_a_run_that_does_not_move_is_told_once(
    engine: Engine, told: Settings, receiver: Receiver, throttled_by: str | None
) -> None:
    run_id = start(engine, told)
    rounds(engine, told)
    assert receiver.taken == []
    at_once = told.model_copy(update={"notify_minutes": 0})
    by = f"'{throttled_by}'" if throttled_by else f"'{NEXT_BATCH} at 22:00'"
    # Until after the rounds: a closed window is no reason to wake somebody.
    change(
        engine,
        f"UPDATE migration.runs SET throttled_by = {by}, throttled_at = now() + interval '1 hour'",
    )
    rounds(engine, at_once)
    if not throttled_by:
        assert receiver.taken == []
        change(engine, "UPDATE migration.runs SET throttled_by = NULL, throttled_at = NULL")
        rounds(engine, at_once)
    rounds(engine, at_once)
    (message,) = receiver.taken
    assert message["title"].startswith(f"Run {run_id} needs you on ")
    why = f"throttled: {throttled_by}" if throttled_by else "no batch was at work"
    assert message["message"].startswith(why)


def test_a_receiver_that_hangs_or_refuses_holds_no_run_and_is_tried_again(
    engine: Engine, told: Settings, receiver: Receiver
) -> None:
    told = told.model_copy(update={"notify_command": "/nowhere/to/be/found"})
    receiver.may_answer.clear()
    receiver.status = 500
    run_id = start(engine, told)
    control.cancel(engine, run_id)
    with capture_logs() as logs:
        reconciler.tick(engine, told)
        until(lambda: receiver.taken)
        # It hangs, and the run goes on to its end.
        control.resume(engine, told, run_id)
        assert go_on(engine, told, run_id).exit_status == 3
        receiver.may_answer.set()
        sent()
        rounds(engine, told)
        receiver.status = 200
        change(engine, DUE_AGAIN)
        rounds(engine, told)
    ends = [title.split(" on ")[0] for title in receiver.titles]
    cancelled, completed = (
        f"Run {run_id} is {s}" for s in ("cancelled", "completed_with_quarantine")
    )
    assert sorted(ends) == sorted([cancelled, cancelled, completed, completed])
    for _ in range(8):
        change(engine, DUE_AGAIN)
        rounds(engine, told)
    left = "SELECT count(*) FROM migration.notices WHERE sent_at IS NULL AND channel = "
    assert scalar(engine, f"{left}'url'") == 0
    assert scalar(engine, f"{left}'command' AND tries = 5") == 2
    assert any(entry["event"] == "notice not sent" for entry in logs)
    assert SECRET not in repr(logs) and "/nowhere" not in repr(logs)


def test_an_address_that_nobody_knows_is_refused_by_name(
    told: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    send.require(told)
    with pytest.raises(Misconfigured, match="MIGRATION_NOTIFY_URL") as refused:
        send.require(told.model_copy(update={"notify_url": SecretStr(f"nobody://{SECRET}")}))
    assert SECRET not in refused.value.message + refused.value.hint + caplog.text
