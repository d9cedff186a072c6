"""Kombu's Redis transport with keys of the ledger's: who publishes takes the prefix of the moment.

A consumer keeps the prefix that it began with; where that is no longer the process's, it connects
anew, and what it had is restored first.
"""

from __future__ import annotations

from typing import Any

import kombu
from celery.app import amqp
from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.url import maybe_sanitize_url
from redis import connection
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError

from producer.broker import namespace

# How long a consumer that knows no ledger yet waits for a message; kombu's own is a second.
IDLE_SECONDS = 0.1


class Connection(kombu.Connection):
    """A connection that shows no password to a client that asks a worker for its statistics.

    Celery takes the password out of them, but the host of a Unix socket is its whole address.
    """

    def info(self) -> dict[str, Any]:
        """What `celery inspect stats` and Flower show of it."""
        found: dict[str, Any] = super().info()
        return found | {"hostname": maybe_sanitize_url(found["hostname"])}


class AMQP(amqp.AMQP):
    """Celery's messages, over such connections."""

    Connection = Connection


class Moved(ConnectionResetError):
    """The process works for another ledger now than when this connection was made."""


class _Leaves:
    """A connection that ends where its server became a replica: the next one finds the primary."""

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """The answer to a command; a refusal of writes counts as a lost connection."""
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except ReadOnlyError as refused:
            self.disconnect()  # type: ignore[attr-defined]
            raise ConnectionError(str(refused)) from None


class TCPConnection(_Leaves, connection.Connection):
    """Redis-py's connection."""


class TLSConnection(_Leaves, connection.SSLConnection):
    """The same over TLS."""


LEAVING = {connection.Connection: TCPConnection, connection.SSLConnection: TLSConnection}


class PubSub(redis.PrefixedRedisPubSub):
    """Subscribes to topics by their names, none of which is a pattern (`celeryconfig`).

    Redis allows a pattern only where its rules hold the very same one, and the prefix is random.
    """

    def psubscribe(self, *topics: Any, **handlers: Any) -> Any:
        """Subscribe by name."""
        return self.subscribe(*topics, **handlers)

    def punsubscribe(self, *topics: Any) -> Any:
        """Unsubscribe by name."""
        return self.unsubscribe(*topics)  # type: ignore[no-untyped-call]


class Client(redis.PrefixedStrictRedis):
    """Kombu's client."""

    def pubsub(self, **options: Any) -> PubSub:
        """Kombu's subscriber, by name."""
        return PubSub(self.connection_pool, global_keyprefix=self.global_keyprefix, **options)


class Channel(redis.Channel):
    """Kombu's channel with the prefix of the ledger."""

    Prefixed: type[redis.PrefixedStrictRedis] = Client
    connection_class = TCPConnection
    connection_class_ssl = TLSConnection
    from_transport_options = tuple(
        name for name in redis.Channel.from_transport_options if name != "global_keyprefix"
    )

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.global_keyprefix = namespace.prefix()
        super().__init__(*arguments, **options)

    @property
    def is_consuming(self) -> bool:
        """Whether messages may be on their way to it: then its prefix stays."""
        return bool(self.active_queues or self.active_fanout_queues)

    def basic_consume(self, *arguments: Any, **options: Any) -> Any:
        """Consume under the prefix of the moment."""
        self._follow()
        return super().basic_consume(*arguments, **options)

    def listeners(self, exchange: str) -> int | None:
        """How many consumers hear a message to this fanout exchange; None where Redis hides it."""
        topic = self.global_keyprefix + self._get_publish_topic(exchange, "")  # type: ignore[attr-defined]
        with self.conn_or_acquire() as client:
            try:
                return int(client.pubsub_numsub(topic)[0][1])
            except ResponseError:
                return None

    def _brpop_start(self, timeout: float | None = None) -> None:
        # The first batches of a new ledger wait for no consumer that still waits elsewhere.
        super()._brpop_start(timeout if namespace.is_known() else IDLE_SECONDS)  # type: ignore[misc]

    def _get_client(self) -> Any:
        super()._get_client()  # type: ignore[misc]  # It refuses redis-py where that is too old.
        return self._make

    def _make(self, **options: Any) -> redis.PrefixedStrictRedis:
        self._follow()
        return self.Prefixed(global_keyprefix=self.global_keyprefix, **options)

    def _follow(self) -> None:
        if not self.is_consuming and self.global_keyprefix != namespace.known():
            self.global_keyprefix = namespace.known()
            # Kombu keeps a client for what it consumes.
            client = self.__dict__.pop("client", None)
            if client is not None and client.connection is not None:
                # It may still wait for an answer, which nobody reads any more.
                client.connection.disconnect()
                client.close()


class Poller(redis.MultiChannelPoller):
    """Kombu's poller; raises Moved where a consumer has another prefix than the process."""

    _channels: set[Channel]

    def on_poll_start(self) -> None:
        now = namespace.known()
        if any(c.is_consuming and c.global_keyprefix != now for c in self._channels):
            raise Moved(f"This process works under {now} now")
        super().on_poll_start()

    def get(self, *arguments: Any, **options: Any) -> Any:
        # Who waits for messages without an event loop has nobody else who looks: Flower, say.
        namespace.refresh()
        return super().get(*arguments, **options)


class Transport(redis.Transport):
    """Kombu's transport with our channel."""

    Channel = Channel

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cycle = Poller()


def use(path: str) -> None:
    """Let this transport serve Redis addresses.

    By the names of the schemes: for a Unix socket, Celery takes no other than its scheme's.
    """
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), path))
