"""Where the servers are: as the settings say, or embedded and started on demand."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from sqlalchemy import Engine

from models.engine import current
from models.errors import MigrationError, Misconfigured, NotAllowed, Unreachable
from models.postgres import database
from models.settings import Settings, load
from producer.broker import refusals


@dataclass(frozen=True)
class Connected:
    """The settings with every address filled in."""

    base: Settings
    database_url: str
    redis_url: str
    celery_broker_url: str
    celery_result_backend: str
    servers: dict[str, str]
    """Broker and result backend as redis-py writes them, by the variables that name them."""
    redis_urls: dict[str, str]
    """What REDIS_URL (`redis`), the `broker` and the `results` name, as redis-py writes it."""


@cache
def settings() -> Connected:
    """Read the environment once; where it names no server, start the embedded ones if they exist.

    Raises Misconfigured otherwise, and then no folder and no server was made.
    """
    base = load()
    if base.mapping:
        # A mistake in it is named before anything is started.
        current.migration().shape(base)
    if base.database_url is None:
        # Most commands have an address, and need not load what starts servers.
        from producer import embedded

        if not embedded.exist(base.home.absolute()):
            raise Misconfigured(
                "DATABASE_URL is not set",
                hint="Set DATABASE_URL and REDIS_URL. Embedded servers, as producer demo starts"
                f" them, were looked for in MIGRATION_HOME ({base.home}); there are none.",
            )
        servers = embedded.start(base.home.absolute())
        database_url, redis_url = servers.database_url, servers.redis_url
        broker = backend = redis_url
    else:
        database_url = base.database_url.get_secret_value()
        broker = (base.broker_url or base.redis_url).get_secret_value()  # type: ignore[union-attr]
        backend = (base.result_backend or base.redis_url).get_secret_value()  # type: ignore[union-attr]
        redis_url = base.redis_url.get_secret_value() if base.redis_url else broker
    redis_url, broker, backend = map(verifying, (redis_url, broker, backend))
    names = (
        "CELERY_BROKER_URL" if base.broker_url else "REDIS_URL",
        "CELERY_RESULT_BACKEND" if base.result_backend else "REDIS_URL",
    )
    return Connected(
        base,
        database_url,
        redis_url,
        celery_url(broker),
        result_url(backend),
        dict(zip(names, (broker, backend), strict=True)),
        {"redis": redis_url, "broker": broker, "results": backend},
    )


def verifying(url: str) -> str:
    """A rediss:// address that says how the certificate is verified: fully, unless it says else.

    Kombu verifies nothing where the address does not say, Celery refuses such an address, and
    redis-py knows `CERT_REQUIRED`, as Celery's manual writes it, as `required` only.
    """
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url
    query = {"ssl_cert_reqs": "required"} | dict(parse_qsl(parts.query))
    query["ssl_cert_reqs"] = query["ssl_cert_reqs"].lower().removeprefix("cert_")
    return parts._replace(query=urlencode(query)).geturl()


@cache
def engine() -> Engine:
    """One engine a process; a forked child must dispose of it (`worker.app`)."""
    return database.create(settings().database_url)


# A server that is silent: an answer may take so long, and an idle connection is asked as often.
REDIS_SECONDS, REDIS_CHECK_SECONDS = 20, 10
# A host that vanished: TCP gives up after 25 s without an answer, or 20 s with unacknowledged data.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


def redis_options() -> dict[str, Any]:
    """Socket options of the broker: the defaults would wait for ever on a dead connection."""
    options: dict[str, Any] = {
        "socket_timeout": REDIS_SECONDS,
        "health_check_interval": REDIS_CHECK_SECONDS,
    }
    return options if is_local() else options | {"socket_connect_timeout": 10, **keepalive()}


def keepalive() -> dict[str, Any]:
    """When TCP gives a Redis up; not every system has every option."""
    options = {getattr(socket, name, None): value for name, value in _KEEPALIVE.items()}
    options.pop(None, None)
    return {"socket_keepalive": True, "socket_keepalive_options": options}


def tls_options() -> dict[str, Any] | None:
    """What a rediss:// broker's address says of TLS, for Flower: it does not read it there."""
    query = dict(parse_qsl(urlsplit(settings().celery_broker_url).query))
    found: dict[str, Any] = {name: query[name] for name in query if name.startswith("ssl_")}
    if "ssl_check_hostname" in found:
        found["ssl_check_hostname"] = found["ssl_check_hostname"].lower() != "false"
    return found or None


def is_local() -> bool:
    """Whether the broker answers on a Unix socket, which knows neither keepalive nor connecting."""
    return settings().celery_broker_url.startswith("redis+socket")


def result_url(url: str) -> str:
    """A redis-py address as Celery writes it for results, with our backend in front."""
    address = celery_url(url).removeprefix("redis+")
    return f"producer.broker.chords:ChordBackend+{address}"


def celery_url(url: str) -> str:
    """A redis-py address as Celery writes it: `unix:///path?db=1` is `redis+socket://` there."""
    parts = urlsplit(url)
    if parts.scheme != "unix":
        return url
    query = parts.query.replace("db=", "virtual_host=")
    login = f"{parts.netloc}" if parts.netloc else ""
    return f"redis+socket://{login}{parts.path}" + (f"?{query}" if query else "")


def unreachable_redis(failure: BaseException) -> MigrationError:
    """The error that a user sees for whatever a Redis client raised."""
    why = refusals.of_redis(failure)
    if refusals.may_not(failure):
        return NotAllowed(
            f"Redis refuses a command: {why}",
            hint="deploy/redis.acl has what a run needs; a backup needs a user who reads all keys.",
        )
    return Unreachable(
        f"Redis cannot be reached or used: {why}",
        hint="Check REDIS_URL: host, port, user and password.",
    )
