"""Endpoints that are slow, broken, hang, redirect or lie: each is named, and none holds us up."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from models.settings import load
from producer.checks import health, performance
from producer.checks.http import Answer, ask_all
from tests.wait import PATIENCE_SECONDS

LIMIT = 1.0
# So many requests answer each other: none is answered before all are there.
MEETING = 5


class Endpoints(BaseHTTPRequestHandler):
    """One path each for what an endpoint may do to its caller."""

    released: threading.Event
    meeting: threading.Barrier

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/hangs":
            self.released.wait()
        elif path == "/meets":
            with suppress(threading.BrokenBarrierError):
                self.meeting.wait(PATIENCE_SECONDS)
                self._answer(200)
        elif path == "/drips":
            self.send_response(200)
            self.end_headers()
            while not self.released.wait(0.1):
                self.wfile.write(b".")
                self.wfile.flush()
        elif path == "/redirects":
            self._answer(302, location="http://elsewhere.example/login?token=secret")
        elif path == "/broken":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        elif path == "/slow":
            self.released.wait(0.5)
            self._answer(200)
        else:
            self._answer({"/fine": 200, "/fails": 500}.get(path, 404))

    def _answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing of it is of interest."""


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[str]:
    held = {"released": threading.Event(), "meeting": threading.Barrier(MEETING)}
    handler = type("Handler", (Endpoints,), held)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    # A client that leaves in the middle is what is tested here.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    scheme = "https" if context else "http"
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        handler.released.set()
        handler.meeting.abort()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def address() -> Iterator[str]:
    with serving() as found:
        yield found


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(url: str) -> Answer:
    (answer,) = ask_all([url], LIMIT)
    return answer


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/fine", "200 OK"),
        ("/fails", "500 Internal Server Error"),
        ("/nowhere", "404 Not Found"),
        ("/redirects", "302 Found: redirects to http://elsewhere.example/login"),
        ("/hangs", "no answer within 1 s"),
        ("/drips", "no answer within 1 s"),
        ("/broken", "broken answer (RemoteProtocolError)"),
    ],
)
def test_what_an_endpoint_does_is_named(address: str, path: str, said: str) -> None:
    answer = ask(f"{address}{path}?key=secret")
    assert (answer.said, answer.is_right) == (said, path == "/fine")
    assert "secret" not in f"{answer.label}{answer.said}"


def test_all_are_asked_at_once_and_none_waits_for_another(address: str) -> None:
    found = ask_all([f"{address}/meets"] * MEETING, PATIENCE_SECONDS)
    assert [answer.said for answer in found] == ["200 OK"] * MEETING
    found = ask_all([f"{address}/hangs"] * 5 + [f"{address}/meets"], LIMIT)
    assert not any(answer.is_right for answer in found)


def test_a_certificate_that_nobody_vouches_for_is_named() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with serving(context) as address:
        answer = ask(f"{address}/fine")
    assert answer.said.startswith("bad certificate: ")
    assert not answer.is_right


def test_a_port_that_nobody_listens_on_is_named() -> None:
    assert ask(f"http://127.0.0.1:{closed_port()}/").said == "cannot be reached"


@pytest.mark.long
def test_speed_is_judged_by_the_slowest_answer_and_not_asked_for_again_after_an_error(
    address: str, servers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performance, "URL_LIMIT_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(performance, "GIVE_UP_SECONDS", PATIENCE_SECONDS)
    settings = load().model_copy(
        update={"api_urls": tuple(f"{address}/{path}" for path in ("fine", "slow", "fails"))}
    )
    fine, slow, fails = performance._urls(settings)
    assert (fine.verdict, fine.repetitions) == ("ok", performance.REPETITIONS)
    assert slow.verdict == "ok" and 0.5 <= slow.median <= slow.p95 <= slow.maximum
    assert (fails.verdict, fails.trouble) == ("failed", "500 Internal Server Error")
    assert fails.repetitions == 1


def test_flower_is_unknown_where_nobody_said_where_it_is_and_failed_where_somebody_did(
    address: str, servers: object
) -> None:
    gone = load().model_copy(update={"flower_url": f"http://127.0.0.1:{closed_port()}"})
    assert health._flower(gone).verdict == "failed"
    wrong = load().model_copy(update={"flower_url": address})
    assert health._flower(wrong).found == "404 Not Found"
