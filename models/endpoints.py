"""Addresses of Redis and of HTTP servers: checked as those who connect would read them."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from models.postgres.addresses import ENCODE, is_port, require_encoded

_REDIS = ("redis", "rediss", "unix")
_TLS = ("ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname")
_VERIFYING = ("required", "optional", "none")


def redis(url: str) -> str:
    """`host:port/database` of a Redis address, or its socket.

    Raises ValueError with words that quote no part of the address.
    """
    scheme = url.partition("://")[0].lower()
    if re.search(r"sentinel|cluster", scheme):
        raise ValueError(
            "a Sentinel or a cluster is not supported: name one primary, or a proxy or a service"
            " that leads to it, with redis:// or rediss://"
        )
    parts = _split(url, _REDIS, "a redis://, rediss:// or unix:// address")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = ("db",) if parts.scheme == "unix" else _TLS if parts.scheme == "rediss" else ()
    if set(query) - set(known):
        raise ValueError(
            "has a parameter that is not known here: db is one of unix://, ssl_cert_reqs and other"
            " ssl_... are ones of rediss://; redis:// has none, its database is /NUMBER"
        )
    verifying = query.get("ssl_cert_reqs", "none").lower().removeprefix("cert_")
    if verifying not in _VERIFYING:
        raise ValueError(f"ssl_cert_reqs must be one of: {', '.join(_VERIFYING)}")
    if parts.scheme == "unix":
        if not parts.path.strip("/") or parts.netloc.rpartition("@")[2]:
            raise ValueError("must be unix:///PATH, the path of a socket")
        number, place = query.get("db", "0"), unquote(parts.path)
    else:
        number = parts.path.removeprefix("/") or "0"
        place = f"{_host(parts)}:{parts.port or 6379}"
    if not re.fullmatch(r"[0-9]{1,6}", number):
        raise ValueError(f"the database must be a number from 0; {ENCODE}")
    return f"{place}/{int(number)}" if parts.scheme != "unix" else f"{place}?db={int(number)}"


def http(url: str) -> str:
    """The address itself, where it is one that can be asked; raises ValueError without quoting."""
    parts = _split(url, ("http", "https"), "an http:// or https:// address")
    if not parts.hostname:
        raise ValueError("has no host")
    _host(parts)
    return url


def _split(url: str, schemes: tuple[str, ...], wanted: str) -> SplitResult:
    if url.partition("://")[0] not in schemes:
        raise ValueError(f"must be {wanted}")
    require_encoded(url)
    place = re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0].rpartition("@")[2]
    if re.search(r"[,;]", place):
        raise ValueError("must name one host, not several: a cluster is not supported")
    port = place.rpartition("]")[2].partition(":")[2] if ":" in place else ""
    if place.rpartition("]")[2].count(":") > 1 or (port and not is_port(port)):
        raise ValueError(f"a port must be a number from 1 to 65535; {ENCODE}")
    try:
        return urlsplit(url)
    except ValueError:
        raise ValueError(f"is not an address; {ENCODE}") from None


def _host(parts: SplitResult) -> str:
    host = parts.hostname or "localhost"
    if not re.fullmatch(r"[\w.\-]+|[0-9a-fA-F:.]+(%\w+)?", host):
        raise ValueError(f"has a host that is no name; {ENCODE}")
    return f"[{host}]" if ":" in host else host
