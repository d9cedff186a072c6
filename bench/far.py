"""`python -m bench.far`: the same run beside its servers, and some milliseconds away from them.

A proxy stands before both servers in both cases, so that its own work is in both times. It counts
what the clients send: each piece that is sent after an answer is a round trip. With `--redis-near`
only PostgreSQL is away.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from bench.contestants import product
from producer.demo import sample
from producer.embedded.directories import POSTGRES_SOCKET, REDIS_SOCKET
from tests.soak.site import Site, open_site, rows
from tests.wait import until

_BYTES = 1 << 16


class Proxy:
    """Passes on what it gets, in both directions, half of a server's `seconds` later."""

    def __init__(self, seconds: tuple[float, float], counts: Any) -> None:
        self._seconds, self._counts = seconds, counts

    async def serve(self, pairs: list[tuple[str, str]]) -> None:
        """Listen at the first socket of each pair for the server at the second."""
        servers = [
            await asyncio.start_unix_server(self._accept(index, target), path)
            for index, (path, target) in enumerate(pairs)
        ]
        await asyncio.gather(*(server.serve_forever() for server in servers))

    def _accept(self, index: int, target: str) -> Any:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_unix_connection(target)
            # Whose turn it is to be heard: a piece after the other side's is a new round trip.
            turn, delay = [""], self._seconds[index] / 2
            await asyncio.gather(
                self._pass(reader, back, delay, turn, index),
                self._pass(there, writer, delay, turn),
            )

        return accept

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        delay: float,
        turn: list[str],
        index: int | None = None,
    ) -> None:
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        clock = asyncio.get_running_loop().time
        side = "server" if index is None else "client"

        async def read() -> None:
            while True:
                data = await reader.read(_BYTES)
                if index is not None and turn[0] != side and data:
                    self._counts[index] += 1
                turn[0] = side
                due.put_nowait((clock() + delay, data))
                if not data:
                    return

        async def write() -> None:
            while (item := await due.get())[1]:
                if (left := item[0] - clock()) > 0:
                    await asyncio.sleep(left)
                writer.write(item[1])
                await writer.drain()

        with suppress(ConnectionError):
            await asyncio.gather(read(), write())
        writer.close()


class FarSite(Site):
    """A site whose workers and commands reach the servers through the proxy."""

    folder = ""

    @property
    def environment(self) -> dict[str, str]:
        found = super().environment
        addresses = {name: found[name] for name in ("DATABASE_URL", "REDIS_URL")}
        there = self.sockets
        return found | {name: url.replace(there, self.folder) for name, url in addresses.items()}

    @property
    def sockets(self) -> str:
        """The folder with the servers' own sockets."""
        return self.servers.redis_url.removeprefix("unix://").partition(f"/{REDIS_SOCKET}")[0]


@contextmanager
def far(site: FarSite, seconds: tuple[float, float]) -> Iterator[Any]:
    """PostgreSQL and Redis are so far away in the block; gives the round trips to each of them."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="far-") as folder:
        site.folder = folder
        names = (POSTGRES_SOCKET, REDIS_SOCKET)
        pairs = [(f"{folder}/{name}", f"{site.sockets}/{name}") for name in names]
        counts = context.Array("q", len(names), lock=False)
        serving = Proxy(seconds, counts).serve(pairs)
        process = context.Process(target=lambda: asyncio.run(serving), daemon=True)
        process.start()
        until(lambda: all(Path(path).exists() for path, _ in pairs), "the proxy does not listen")
        try:
            yield counts
        finally:
            process.kill()
            process.join()
            serving.close()


@click.command()
@click.option("--users", "number", type=click.IntRange(1000), default=50_000, show_default=True)
@click.option("--milliseconds", type=float, default=5.0, show_default=True)
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True)
@click.option("--redis-near", is_flag=True, help="Leave Redis beside the workers.")
def main(number: int, milliseconds: float, repetitions: int, redis_near: bool) -> None:
    """Time both in turn; prints medians of seconds, batches and round trips, and the ratio."""
    found: dict[float, list[dict[str, float]]] = {0.0: [], milliseconds: []}
    with open_site(FarSite) as site:
        legacy = site.fresh("legacy")
        with legacy.begin() as connection:
            sample.load(connection, number, dirty=False)
        legacy.dispose()
        for away in [0.0, milliseconds] * repetitions:
            engine = site.fresh("far", template="legacy")
            with far(site, (away / 1000, 0.0 if redis_near else away / 1000)) as counts:
                seconds = product(site, engine).seconds
                batches = rows(engine, "SELECT count(*) FROM migration.batches")[0][0]
                trips = {"postgres": counts[0], "redis": counts[1]}
                found[away].append({"seconds": seconds, "batches": batches, **trips})
            engine.dispose()
    medians = {
        f"{away:g} ms": {name: statistics.median(each[name] for each in runs) for name in runs[0]}
        for away, runs in found.items()
    }
    near, distant = medians.values()
    click.echo(json.dumps({**medians, "ratio": round(distant["seconds"] / near["seconds"], 3)}))


if __name__ == "__main__":
    main()
