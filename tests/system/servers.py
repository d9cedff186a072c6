"""A PostgreSQL and a Redis that speak TLS only, with certificates of a CA of the tests' own."""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

import trustme

from producer.embedded import directories
from producer.embedded.directories import Place
from tests.system import packages
from tests.wait import until

# With what may not stand in an address as it is.
PASSWORD = "s3cret/Word+1"
QUOTED = quote(PASSWORD, safe="")
RULES = Path(__file__).parents[2] / "deploy" / "redis.acl"
REDIS_USER, ADMINISTRATOR = "migration", "administrator"


@dataclass(frozen=True)
class Certificates:
    """A server's certificate for `localhost`, the CA that signed it, and one that did not."""

    ca: Path
    other_ca: Path
    server: Path
    key: Path


@dataclass(frozen=True)
class Server:
    """Where a server answers over TLS: the port on `localhost`, and what verifies it."""

    port: int
    certificates: Certificates


@contextmanager
def place_of(home: Path) -> Iterator[Place]:
    """Folders that the servers' user can enter, root's too; they go at the end."""
    try:
        with directories.locked(home):
            yield directories.prepare(home)
    finally:
        directories.erase(home)


def certify(place: Place) -> Certificates:
    """Make certificates in the place."""
    folder = place.root / "certificates"
    folder.mkdir()
    made = Certificates(*(folder / name for name in ("ca", "other-ca", "server", "key")))
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(str(made.ca))
    trustme.CA().cert_pem.write_to_path(str(made.other_ca))
    issued.cert_chain_pems[0].write_to_path(str(made.server))
    issued.private_key_pem.write_to_path(str(made.key))
    made.key.chmod(0o600)
    _own(place, folder)
    return made


@contextmanager
def postgres(place: Place, certificates: Certificates) -> Iterator[Server]:
    """A PostgreSQL that takes passwords over TLS, and the tests' own superuser by its socket."""
    data, port = place.postgres / "data", _free_port()
    _run(
        place, "initdb", f"--pgdata={data}", "--username=postgres", "--encoding=UTF8",
        "--locale=C.UTF-8", "--auth=trust",
    )  # fmt: skip
    rules = "local all postgres trust\nhostssl all all all scram-sha-256\n"
    (data / "pg_hba.conf").write_text(rules)
    options = {
        "listen_addresses": "localhost",
        "port": port,
        "unix_socket_directories": place.sockets,
        "ssl": "on",
        "ssl_cert_file": certificates.server,
        "ssl_key_file": certificates.key,
        "password_encryption": "scram-sha-256",
    }
    _run(
        place, "pg_ctl", "start", f"--pgdata={data}", f"--log={data}.log", "--wait",
        f"--options={shlex.join(f'-c{name}={value}' for name, value in options.items())}",
    )  # fmt: skip
    try:
        yield Server(port, certificates)
    finally:
        _run(place, "pg_ctl", "stop", f"--pgdata={data}", "--mode=immediate")


@contextmanager
def redis_server(place: Place, certificates: Certificates) -> Iterator[Server]:
    """A Redis that speaks TLS only, with the rules of deploy/redis.acl."""
    port = _free_port()
    rules = place.redis / "users.acl"
    ours = RULES.read_text().replace("SHA256", sha256(PASSWORD.encode()).hexdigest())
    rules.write_text(f"{ours}user {ADMINISTRATOR} on nopass ~* &* +@all\n")
    _own(place, place.redis)
    log = place.redis / "log"
    options = {
        "port": 0,
        "bind": "127.0.0.1",
        "tls-port": port,
        "tls-cert-file": certificates.server,
        "tls-key-file": certificates.key,
        "tls-ca-cert-file": certificates.ca,
        "tls-auth-clients": "no",
        "aclfile": rules,
        "unixsocket": place.sockets / "tls.sock",
        "dir": place.redis,
        "appendonly": "yes",
        "logfile": log,
        "pidfile": place.redis / "pid",
        "daemonize": "yes",
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    _run(place, "redis-server", *arguments)
    try:
        _wait_for(port, log)
        yield Server(port, certificates)
    finally:
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int((place.redis / "pid").read_text()), 15)


def redis_address(server: Server, ca: Path, user: str = REDIS_USER, database: int = 0) -> str:
    """The address of the TLS Redis as the product's user, or as another one."""
    login = f"{user}:{QUOTED}"
    return f"rediss://{login}@localhost:{server.port}/{database}?ssl_ca_certs={ca}"


def database_address(server: Server, user: str, database: str, ca: Path) -> str:
    """The address of a database on the TLS PostgreSQL."""
    return (
        f"postgresql://{user}:{QUOTED}@localhost:{server.port}/{database}"
        f"?sslmode=verify-full&sslrootcert={ca}"
    )


def _run(place: Place, program: str, *arguments: str) -> None:
    package = {"initdb": "postgresql", "pg_ctl": "postgresql"}.get(program, program)
    ended = place.owner.run(*packages.command(program, package), *arguments)
    assert ended.returncode == 0, ended.stderr + ended.stdout


def _own(place: Place, folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, place.owner.uid, place.owner.gid)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, log: Path) -> None:
    def listens() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    until(listens, lambda: log.read_text() if log.exists() else "no log")
