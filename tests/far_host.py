"""A host with the database in a network namespace of its own, whose packets can be dropped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PORT = 5432

# It hands bytes from its port to the server's socket and back.
_RELAY = """
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


class NoNamespace(Exception):
    """No network namespace can be made here; the text says why."""


@dataclass(frozen=True)
class FarHost:
    """The host: `address` is reached until it vanishes."""

    name: str
    address: str

    def vanish(self) -> None:
        """Drop all packets from now on, those of open connections too."""
        _ip("-n", self.name, "link", "set", f"{self.name}-b", "down")


@contextmanager
def far_host(server: Path) -> Iterator[FarHost]:
    """Serve PostgreSQL's socket on another host during the block; raises NoNamespace."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise NoNamespace("needs root and iproute2: it makes a network namespace")
    number = _make_namespace()
    name, here, there = f"migr{number}", f"10.213.{number}.1", f"10.213.{number}.2"
    relay = None
    try:
        _ip("link", "add", f"{name}-a", "type", "veth", "peer", "name", f"{name}-b")
        _ip("link", "set", f"{name}-b", "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", f"{name}-a")
        _ip("link", "set", f"{name}-a", "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", f"{name}-b")
        _ip("-n", name, "link", "set", f"{name}-b", "up")
        command = [sys.executable, "-c", _RELAY, str(server), there, str(PORT)]
        relay = subprocess.Popen(["ip", "netns", "exec", name, *command], stdout=subprocess.PIPE)
        assert relay.stdout is not None and relay.stdout.readline() == b"listens\n"
        yield FarHost(name, there)
    finally:
        if relay is not None:
            relay.kill()
            relay.communicate()
        _ip("netns", "del", name)
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", f"{name}-a")


def _make_namespace() -> int:
    """Take the first number that nobody uses."""
    for number in range(1, 255):
        try:
            _ip("netns", "add", f"migr{number}")
        except subprocess.CalledProcessError as failure:
            why = failure.stderr.decode().strip()
            if "exists" not in why:
                raise NoNamespace(f"no network namespace can be made here: {why}") from None
        else:
            return number
    raise NoNamespace("all numbers of network namespaces are taken")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
