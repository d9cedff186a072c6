"""Servers that their replica replaces, without the newest writes; servers that refuse writes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from functools import partial
from urllib.parse import quote

import psutil
import redis
from sqlalchemy import text

from models.postgres import database as databases
from producer.embedded.directories import REDIS_SOCKET
from producer.embedded.programs import valkey_program
from tests.far_host import NoNamespace, far_host
from tests.faults.deaths import Play
from tests.faults.messages import at_a_batch
from tests.faults.site import Site
from tests.proxy import Proxy, proxy
from tests.standby import PORT, say, standby, wait_until_streaming
from tests.wait import until

# How long the replica has received nothing when its primary dies.
LAG_SECONDS = 0.5
# The product asks after a minute, which is most of what a repetition may take.
ASK_SECONDS = "10"
# A batch of the stage is done, another one in each repetition.
_REACHED = """
SELECT count(*) FILTER (WHERE state = 'done') > :done
  OR count(*) > 0 AND count(*) = count(*) FILTER (WHERE state = 'done')
FROM migration.batches WHERE stage = :stage
"""


def fails_over(stage: str, *, through_proxy: bool = False) -> Play:
    """The primary dies in that stage, and its standby is promoted without the last half second."""

    def play(site: Site) -> float:
        follower = Follower(site, through_proxy=through_proxy)
        site.work()
        site.enqueue()
        values = {"stage": stage, "done": site.repetition % 4}
        site.until(lambda: site.scalar(_REACHED, **values), f"a batch of the stage {stage}")
        sender = site.scalar("SELECT pid FROM pg_stat_replication LIMIT 1")
        os.kill(sender, signal.SIGSTOP)
        site.hold(LAG_SECONDS)
        _kill_with_children(site.lane.postmaster())
        follower.promote()
        return time.time()

    return play


def vanished(site: Site) -> float:
    """The primary's host drops all packets, of old connections and of new ones."""
    follower = Follower(site)
    primary = site.lane.place.sockets / ".s.PGSQL.5432"
    try:
        host = site.cleanup.enter_context(far_host(primary))
    except NoNamespace:
        silent_host = site.cleanup.enter_context(proxy(primary))
        follower.name_hosts("127.0.0.1", silent_host.port)
        site.environment["FAULT_ASK_SECONDS"] = ASK_SECONDS
        vanish = partial(setattr, silent_host, "is_silent", True)
    else:
        follower.name_hosts(host.address, 5432)
        vanish = host.vanish
    at_a_batch(site)
    vanish()
    _kill_with_children(site.lane.postmaster())
    follower.promote()
    return time.time()


def silent(site: Site) -> float:
    """The proxy's connections fall silent, with those to a server that is gone; new ones do not."""
    follower = Follower(site, through_proxy=True)
    assert follower.proxy
    site.environment["FAULT_ASK_SECONDS"] = ASK_SECONDS
    at_a_batch(site)
    follower.proxy.mute()
    _kill_with_children(site.lane.postmaster())
    follower.promote()
    return time.time()


def read_only(site: Site) -> float:
    """The server takes no write for 20 seconds, as one that is about to be replaced."""
    at_a_batch(site)
    _set_read_only(site, "on")
    site.hold(3 if site.is_short else 20)
    _set_read_only(site, "off")
    return time.time()


def _set_read_only(site: Site, value: str) -> None:
    engine = site.engine.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"ALTER SYSTEM SET default_transaction_read_only = {value}"))
        connection.execute(text("SELECT pg_reload_conf()"))


class Follower:
    """A standby of the site's PostgreSQL, and an address of both for the product."""

    def __init__(self, site: Site, *, through_proxy: bool = False) -> None:
        self._site = site
        self._standby = site.cleanup.enter_context(standby(site.lane.home))
        wait_until_streaming(site.engine)
        folder = site.lane.place.sockets
        self._target = folder / f".s.PGSQL.{PORT}"
        self.proxy: Proxy | None = None
        if through_proxy:
            self.proxy = site.cleanup.enter_context(proxy(folder / ".s.PGSQL.5432"))
            address = f"postgresql://postgres@127.0.0.1:{self.proxy.port}/site"
            site.environment["DATABASE_URL"] = address
        else:
            self.name_hosts(str(folder), 5432)

    def name_hosts(self, host: str, port: int) -> None:
        """Let the product know the primary's address and the standby's."""
        hosts = f"{quote(host, safe='')},{quote(str(self._target.parent), safe='')}"
        self._site.environment["DATABASE_URL"] = (
            f"postgresql://postgres@/site?host={hosts}&port={port},{PORT}"
            "&target_session_attrs=read-write"
        )

    def promote(self) -> None:
        """Let the standby be the primary; the site looks at it from now on."""
        say(self._standby, "SELECT pg_promote()")
        self._site.engine.dispose()
        folder = self._site.lane.place.sockets
        self._site.engine = databases.create(
            f"postgresql://postgres@/site?host={folder}&port={PORT}", application="harness"
        )
        if self.proxy:
            self.proxy.target = self._target


def _kill_with_children(pid: int) -> None:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=30)


def redis_promoted(site: Site) -> float:
    """The primary is killed, and its replica promoted without the last half second."""
    replica = Replica(site)
    at_a_batch(site)
    os.kill(replica.process.pid, signal.SIGSTOP)
    site.hold(LAG_SECONDS)
    os.kill(site.lane.valkey(), signal.SIGKILL)
    os.kill(replica.process.pid, signal.SIGCONT)
    replica.promote()
    return time.time()


def redis_demoted(site: Site) -> float:
    """The primary becomes its replica's replica, and keeps its connections: READONLY to each."""
    replica = Replica(site)
    at_a_batch(site)
    old = site.redis
    replica.promote()
    old.replicaof("127.0.0.1", replica.port)
    site.cleanup.callback(old.replicaof, "NO", "ONE")
    return time.time()


class Replica:
    """A replica of the site's Valkey, and a proxy that leads the product to the primary."""

    def __init__(self, site: Site) -> None:
        self._site = site
        folder = site.lane.place.sockets
        self._proxy = site.cleanup.enter_context(proxy(folder / REDIS_SOCKET))
        site.environment["REDIS_URL"] = f"redis://127.0.0.1:{self._proxy.port}/0"
        # It listens on its socket alone; a replica follows a port.
        leads, self.port = _free_port(), _free_port()
        site.redis.config_set("port", leads)
        site.cleanup.callback(_without_port, site.redis)
        self._socket = site.folder / "replica.sock"
        command = [
            valkey_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--unixsocket", str(self._socket), "--dir", str(site.folder),
            "--replicaof", "127.0.0.1", str(leads),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        site.cleanup.callback(self._end)
        self._client = redis.Redis(unix_socket_path=str(self._socket), decode_responses=True)
        until(self._follows, "the replica does not follow")

    def promote(self) -> None:
        """Let it be the primary, and lead new connections there."""
        self._client.replicaof("NO", "ONE")
        self._proxy.target = self._socket
        self._site.redis = self._client

    def _follows(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self._client.info("replication")["master_link_status"] == "up")
        return False

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._client.close()


def _without_port(client: redis.Redis) -> None:
    with suppress(redis.RedisError):
        client.config_set("port", 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
