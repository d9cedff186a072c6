"""A host that vanishes: its packets are dropped, and nothing says that the connection is over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import pytest

from producer.demo import sample
from tests.acceptance.conftest import Product, count
from tests.wait import until

NAMESPACE, OURS, THEIRS = "migration-test", "mig-test0", "mig-test1"
HERE, THERE, PORT = "10.213.77.1", "10.213.77.2", 5432

# A host with the database: it hands bytes from its port to the Unix socket and back.
RELAY = """
import asyncio, sys

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def meet(reader, writer):
    there = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(meet, sys.argv[2], int(sys.argv[3]))
    print("listens", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def host(product: Product) -> Iterator[str]:
    """The address of a host in a network namespace of its own, that serves the database."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2: it makes a network namespace")
    try:
        ip("netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as failure:
        pytest.skip(f"no network namespace can be made here: {failure.stderr.decode().strip()}")
    relay = None
    try:
        ip("link", "add", OURS, "type", "veth", "peer", "name", THEIRS)
        ip("link", "set", THEIRS, "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/30", "dev", OURS)
        ip("link", "set", OURS, "up")
        ip("-n", NAMESPACE, "addr", "add", f"{THERE}/30", "dev", THEIRS)
        ip("-n", NAMESPACE, "link", "set", THEIRS, "up")
        folder = parse_qs(urlsplit(product.environment["DATABASE_URL"]).query)["host"][0]
        server = f"{folder}/.s.PGSQL.{PORT}"
        relay = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                NAMESPACE,
                sys.executable,
                "-c",
                RELAY,
                server,
                THERE,
                str(PORT),
            ],
            stdout=subprocess.PIPE,
        )
        assert relay.stdout is not None and relay.stdout.readline() == b"listens\n"
        yield THERE
    finally:
        if relay is not None:
            relay.kill()
            relay.communicate()
        ip("netns", "del", NAMESPACE)
        with suppress(subprocess.CalledProcessError):
            ip("link", "del", OURS)


@pytest.mark.timeout(420)
def test_a_run_goes_on_over_another_host_when_the_first_vanishes(
    product: Product, host: str
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 2_000)
    url = urlsplit(product.environment["DATABASE_URL"])
    socket = parse_qs(url.query)["host"][0]
    both = f"postgresql://{url.netloc}{url.path}?host={host},{socket}&port={PORT},{PORT}"
    product.environment |= {"DATABASE_URL": both, "MIGRATION_BATCH_SIZE": "20"}
    waiting = product.start("enqueue-all", "--wait", "--json")
    with product.worker():
        done = "SELECT count(*) FROM migration.batches WHERE state = 'done'"
        until(lambda: count(product, "SELECT count(to_regclass('migration.batches'))"))
        until(lambda: count(product, done) > 5)
        # From now on all packets are dropped, those of open connections too, and none comes back.
        ip("-n", NAMESPACE, "link", "set", THEIRS, "down")
        out, err = waiting.communicate(timeout=300)
    assert waiting.returncode == 3, err
    assert '"state": "completed_with_quarantine"' in out
