"""Addresses of servers: parsed once, refused without quoting, since any part may be a password."""

from __future__ import annotations

import getpass
import os
import re
from pathlib import Path
from urllib.parse import unquote

import psycopg2
from psycopg2.extensions import parse_dsn

Parameters = dict[str, str]

ENCODE = (
    "percent-encode what is special in user, password, path and parameters:"
    " %23 for #, %25 for %, %2F for /, %3A for :, %3F for ?, %40 for @, %20 for a space"
)
_POSTGRESQL = re.compile(r"postgres(?:ql)?(?:\+\w+)?://")
# What libpq reads only when it connects, and would then quote.
_NUMBERS = {
    "connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
    "tcp_user_timeout",
}  # fmt: skip
_CHOICES = {
    "sslmode": "disable allow prefer require verify-ca verify-full",
    "target_session_attrs": "any read-write read-only primary standby prefer-standby",
    "gssencmode": "disable prefer require",
    "channel_binding": "disable prefer require",
    "load_balance_hosts": "disable random",
    "sslnegotiation": "postgres direct",
}
# Parameters of other drivers, and what libpq has instead.
_FOREIGN = {
    "ssl": "write sslmode=require",
    "sslaccept": "write sslmode=require",
    "tls": "write sslmode=require",
    "schema": "write options=-csearch_path%3DNAME",
    "search_path": "write options=-csearch_path%3DNAME",
    "currentSchema": "write options=-csearch_path%3DNAME",
    "timeout": "write connect_timeout=SECONDS",
    "pgbouncer": "leave it out: a pooler needs no setting",
    "replication": "leave it out",
    **dict.fromkeys(
        (
            "command_timeout", "connection_limit", "max_overflow", "pool_size", "pool_timeout",
            "prepared_statement_cache_size", "prepared_statements", "server_settings",
            "socket_timeout", "statement_cache_size", "sslidentity", "charset", "encoding",
        ),
        "leave it out",
    ),
}  # fmt: skip
_DEFAULT_HOST, _DEFAULT_PORT = "localhost", "5432"


def postgresql(url: str) -> Parameters:
    """The parameters that libpq gets for an address, a service's entries among them.

    What neither names is left to libpq, which takes it from its environment. Raises ValueError
    with words that quote no part of the address.
    """
    if not _POSTGRESQL.match(url):
        raise ValueError("must be a postgresql:// or postgres:// address")
    require_encoded(url)
    rest = url.partition("://")[2]
    place, _, query = rest.partition("?")
    hosts: list[tuple[str, str]] = []
    others: list[str] = []
    for part in filter(None, query.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError("a parameter must be written as name=value")
        if name in _FOREIGN:
            raise ValueError(f"the parameter {name} is not libpq's: {_FOREIGN[name]}")
        if name in ("host", "port"):
            hosts.append((name, unquote(value)))
        else:
            others.append(part)
    try:
        found = parse_dsn("postgresql://" + place + ("?" + "&".join(others) if others else ""))
    except psycopg2.Error:
        raise ValueError(
            f"is not an address as libpq takes it, or has a parameter that libpq does not know;"
            f" {ENCODE}"
        ) from None
    found = _service(found) | found | _repeated(hosts)
    if not found.get("port", "").strip(","):
        found.pop("port", None)
    if "port" not in found and not all(map(is_port, filter(None, _port_of_environment()))):
        raise ValueError("names no port, and PGPORT holds none either")
    _require_sound(_environment() | found)
    return found


def _port_of_environment() -> list[str]:
    return os.environ.get("PGPORT", "").split(",")


def require_encoded(url: str) -> None:
    """Refuse what a parser may cut at the wrong place; raises ValueError."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login = authority.rpartition("@")[0]
    if (
        re.search(r"[\s#\x00-\x1f\x7f]|%(?![0-9A-Fa-f]{2})|%[01]|%7[Ff]", url)
        or rest.count("@") > 1
        or ("@" in rest and "@" not in authority)
        or login.count(":") > 1
        or re.search(r"[\[\]]", login)
    ):
        raise ValueError(ENCODE)
    try:
        unquote(url, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 when it is decoded") from None


def _repeated(given: list[tuple[str, str]]) -> Parameters:
    """Hosts and ports of the query, as libpq lists them; SQLAlchemy writes `host=name:port`."""
    names = [part for name, value in given if name == "host" for part in value.split(",")]
    ports = [part for name, value in given if name == "port" for part in value.split(",")]
    split = [re.fullmatch(r"([^:/]*):(\d+)", host) for host in names]
    if any(split) and not ports:
        ports = [match[2] if match else "" for match in split]
        names = [match[1] if match else host for match, host in zip(split, names, strict=True)]
    return {key: ",".join(parts) for key, parts in (("host", names), ("port", ports)) if any(parts)}


def _environment() -> Parameters:
    """What libpq takes from its environment where the address does not say."""
    names = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "user": "PGUSER",
             "dbname": "PGDATABASE"}  # fmt: skip
    return {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}


def _service(given: Parameters) -> Parameters:
    """The entries of the service that address or environment name, as libpq finds them."""
    name = given.pop("service", None) or os.environ.get("PGSERVICE")
    if not name:
        return {}
    own = os.environ.get("PGSERVICEFILE")
    places = [Path(own) if own else Path.home() / ".pg_service.conf"]
    system = os.environ.get("PGSYSCONFDIR", "/etc/postgresql-common")
    places.append(Path(system) / "pg_service.conf")
    for place in places:
        try:
            lines = place.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        found = _section(lines, name)
        if found is not None:
            return found
    raise ValueError("names a service that is in no service file (PGSERVICEFILE)")


def _section(lines: list[str], name: str) -> Parameters | None:
    found: Parameters | None = None
    for line in map(str.strip, lines):
        if line.startswith("["):
            if found is not None:
                return found
            found = {} if line == f"[{name}]" else None
        elif found is not None and line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            if not equals or key.startswith("ldap"):
                raise ValueError("names a service whose entries are not name=value")
            found[key] = value
    return found


def _require_sound(found: Parameters) -> None:
    ports = found.get("port", "").split(",")
    for port in filter(None, ports):
        if not is_port(port):
            raise ValueError(f"a port must be a number from 1 to 65535; {ENCODE}")
    addresses = found.get("hostaddr") or found.get("host", "")
    if len(ports) > 1 and len(ports) != len(addresses.split(",")):
        raise ValueError("must name one port, or one for each host")
    for host in found.get("host", "").split(","):
        if not re.fullmatch(r"[/@].*|[\w.\-:%]*", host):
            raise ValueError(f"has a host that is no name; {ENCODE}")
    for name in _NUMBERS & found.keys():
        if not re.fullmatch(r"-?\d{1,9}", found[name]):
            raise ValueError(f"the parameter {name} must be a whole number")
    for name, choices in _CHOICES.items():
        if name in found and found[name] not in choices.split():
            raise ValueError(f"the parameter {name} must be one of: {choices.replace(' ', ', ')}")


def is_port(text: str) -> bool:
    """Whether a text is a port's number."""
    return bool(re.fullmatch(r"[0-9]{1,5}", text)) and 1 <= int(text) <= 65535


def describe(url: str) -> str:
    """`user@host:port/database` of a PostgreSQL address; several hosts with commas between."""
    return place_of(postgresql(url))


def place_of(parameters: Parameters) -> str:
    """`user@host:port/database` of libpq's parameters, as libpq would fill them in."""
    found = _environment() | parameters
    user = found.get("user") or getpass.getuser()
    hosts = (found.get("host") or found.get("hostaddr") or _DEFAULT_HOST).split(",")
    ports = (found.get("port") or _DEFAULT_PORT).split(",")
    ports = ports if len(ports) == len(hosts) else ports * len(hosts)
    places = [
        f"{f'[{host}]' if ':' in host else host or _DEFAULT_HOST}:{port or _DEFAULT_PORT}"
        for host, port in zip(hosts, ports, strict=True)
    ]
    return f"{user}@{','.join(places)}/{found.get('dbname') or user}"
