"""A process that works for one ledger after the other: a test suite, a console, a worker."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

# Ten connections are what a channel may have.
MOVES = """
from kombu import Consumer, Queue
from producer.broker import namespace
from producer.broker.queue import app

namespace.LOOK_SECONDS = float("inf")
namespace.refresh()
with app.connection_for_read() as connection:
    channel = connection.default_channel
    for number in range(12):
        namespace.note(f"ledger-{number}")
        with Consumer(channel, Queue(f"asked-{number}", auto_delete=True), no_ack=True):
            try:
                connection.drain_events(timeout=0.01)
            except TimeoutError:
                pass
        with channel.conn_or_acquire() as client:
            assert client.ping()
        assert channel.global_keyprefix == namespace.known() == f"migration:ledger-{number}:"
    print(len(channel.pool._in_use_connections))
"""


def test_a_process_that_moves_to_another_ledger_leaves_no_connection_behind(
    run_alone: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    ended = run_alone(MOVES)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) <= 1
