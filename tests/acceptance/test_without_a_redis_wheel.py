"""For those who have no Redis at all: the chord on a Redis written in Python, over TCP."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis
from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler
from sqlalchemy import text

from tests import variants
from tests.acceptance.conftest import Product


class KeepsConnections(TCPFakeRequestHandler):
    """Answers with an error and goes on, as Redis does; fakeredis 2.40 ends the connection."""

    def setup(self) -> None:
        super().setup()
        read = self.current_client.read_response

        def reply() -> object:
            try:
                return read()
            except redis.ResponseError as error:
                return error

        self.current_client.read_response = reply


@pytest.fixture
def fake_redis() -> Iterator[str]:
    """The address of a fakeredis server with Lua, which Celery's chord needs."""
    server = TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    server.RequestHandlerClass = KeepsConnections
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.long
def test_the_whole_run_passes_on_fakeredis(product: Product, fake_redis: str) -> None:
    product.environment["REDIS_URL"] = fake_redis
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 100)
    with product.worker("--loglevel=INFO"):
        ended = product.run("enqueue-all", "--wait", "--json")
    assert ended.status == 3, ended.err
    log = (product.folder / "celery-0.log").read_text()
    with product.engine.connect() as connection:
        windows = connection.scalar(
            text('SELECT count(DISTINCT (stage, "window", step)) FROM migration.batches')
        )
    assert log.count("Task migration.advance[") >= windows
