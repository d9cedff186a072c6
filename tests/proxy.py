"""A proxy before a server on a Unix socket, that can cut, refuse, fall silent and change target."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Proxy:
    """Hands bytes from a TCP port of its own to a socket and back, for as long as it is told to."""

    def __init__(self, target: Path) -> None:
        self.target: Path | None = target
        """None: whoever connects is turned away."""
        self.is_silent = False
        """Whether it takes whatever comes, as a host does that only acknowledges, and hands on
        nothing."""
        self._open: set[asyncio.StreamWriter] = set()
        self._muted: set[asyncio.StreamWriter] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._thread.start()

    def cut(self) -> None:
        """End every connection that is open."""
        self._loop.call_soon_threadsafe(self._abort)

    def mute(self) -> None:
        """Let the connections that are open now fall silent, and serve new ones."""
        self._muted |= self._open

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._meet, sock=self._listener)
        await self._over.wait()
        server.close()
        while self._open:
            self._abort()
            await asyncio.sleep(0.01)

    def _abort(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._kept(writer), suppress(OSError):
            if self.target is None:
                return
            back, there = await asyncio.open_unix_connection(str(self.target))
            with self._kept(there):
                await asyncio.gather(self._pump(reader, there), self._pump(back, writer))

    @contextmanager
    def _kept(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._open.add(writer)
        try:
            yield
        finally:
            self._open.discard(writer)
            self._muted.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not (self.is_silent or writer in self._muted):
                    writer.write(data)
                    await writer.drain()
        writer.close()


@contextmanager
def proxy(target: Path) -> Iterator[Proxy]:
    """A proxy for the time of the block."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()
