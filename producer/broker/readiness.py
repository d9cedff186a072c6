"""Whether a Redis can carry a run: asked before anything is changed, and by `check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from models import endpoints
from models.errors import Misconfigured, NotAllowed, Unreachable
from models.reports.checks import Check
from producer import connect
from producer.broker.refusals import of_redis

OLDEST = 6
# Of the prefix that deploy/redis.acl allows.
_PROBE = "migration:ready"
_SECONDS = 10
_FIX = {
    "it is a cluster": "Name a server without cluster mode: Celery's broker cannot use one.",
    "it is a replica, and refuses writes": "Name its primary.",
    "it is a replica whose primary is down": "Name its primary.",
    "it has no database of that number": "Name a smaller number, or raise `databases` in its"
    " configuration.",
    "it is out of memory, and refuses writes": "Give it memory (maxmemory), or empty what else it"
    " holds.",
    "it cannot save to its disk, and refuses writes": "Make room on its disk, or see its log.",
    "it has too few replicas, and refuses writes": "Start its replicas, or see"
    " min-replicas-to-write.",
    "it is loading its data": "Wait until it has loaded, then run the command again.",
    "it has too many clients": "Raise maxclients, or close connections.",
    "the login is refused": "Correct user and password; special characters are percent-encoded.",
}


def require() -> None:
    """Raise Misconfigured, NotAllowed or Unreachable where broker or result backend is unfit."""
    for variable, url in connect.settings().servers.items():
        look(variable, url)


def examine() -> list[Check]:
    """A verdict for the broker, and one for the result backend where that is another server."""
    found = []
    for name, (variable, url) in zip(
        ("redis", "redis for results"), connect.settings().servers.items(), strict=False
    ):
        try:
            check = judge(look(variable, url))
        except (Misconfigured, NotAllowed, Unreachable) as error:
            check = Check(verdict="failed", found=error.message, hint=error.hint)
        found.append(check.model_copy(update={"name": name}))
    return found


def look(variable: str, url: str) -> Mapping[str, Any]:
    """What INFO says of a Redis that takes a key of ours; raises what `require` does."""
    place = f"{variable}, {endpoints.redis(url)}"
    try:
        with _client(url) as client:
            # A cluster may have no other database than this one.
            client.connection_pool.connection_kwargs["db"] = 0
            info = _info(client)
        _require_fit(info, place)
        with _client(url) as client:
            client.set(_PROBE, 1, ex=1)
            client.delete(_PROBE)
    except (redis.RedisError, ValueError, OSError) as failure:
        why = of_redis(failure)
        error = connect.unreachable_redis(failure)
        if isinstance(error, NotAllowed) or why not in _FIX:
            raise type(error)(f"{error.message} ({place})", hint=error.hint) from None
        raise Unreachable(
            f"Redis cannot be reached or used: {why} ({place})", hint=f"{_FIX[why]} See {variable}."
        ) from None
    return info


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS)


def _info(client: redis.Redis) -> Mapping[str, Any]:
    try:
        return dict(client.info())
    except redis.exceptions.ResponseError:
        # It cannot or may not say what it is: what it does decides.
        client.ping()
        return {}


def _require_fit(info: Mapping[str, Any], place: str) -> None:
    mode = str(info.get("redis_mode", info.get("server_mode", "")))
    version = str(info.get("redis_version", OLDEST))
    if mode == "cluster" or info.get("cluster_enabled"):
        raise Misconfigured(f"Redis is a cluster ({place})", hint=_FIX["it is a cluster"])
    if mode == "sentinel":
        raise Misconfigured(f"Redis is a Sentinel ({place})", hint="Name the primary it watches.")
    if info.get("role") == "slave":
        raise Misconfigured(f"Redis is a replica ({place})", hint="Name its primary.")
    if info.get("loading"):
        raise Unreachable(
            f"Redis is loading its data ({place})", hint=_FIX["it is loading its data"]
        )
    if int(version.partition(".")[0]) < OLDEST:
        raise Misconfigured(
            f"Redis {version} is too old ({place})",
            hint="Redis 6 or newer is needed, or any Valkey.",
        )


def judge(info: Mapping[str, Any]) -> Check:
    """The verdict on a Redis that is fit; Valkey counts as the Redis that it says it is."""
    version = info.get("valkey_version", info.get("redis_version", ""))
    said = f"{info.get('server_name', 'redis')} {version}".strip()
    policy, most = info.get("maxmemory_policy"), int(info.get("maxmemory", 0))
    if policy not in (None, "noeviction"):
        return Check(
            verdict="warning",
            found=f"{said}, maxmemory-policy {policy}",
            hint="Evicted messages are published again, but late: set it to noeviction.",
        )
    if most and int(info.get("used_memory", 0)) > 0.9 * most:
        return Check(
            verdict="warning",
            found=f"{said}, {int(info['used_memory']):,} of {most:,} bytes in use",
            hint="It refuses writes when it is full: raise maxmemory.",
        )
    return Check(verdict="ok", found=said)
