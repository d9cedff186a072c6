"""Serving the console: the password, the address, the server."""

from __future__ import annotations

import ipaddress
import secrets
import socket

from rich.console import Console
from waitress.server import create_server

from models.errors import Misconfigured
from models.settings import Settings
from producer import connect
from producer.console import app as console
from producer.console.login import Passwords

# A check or a report holds one for its time; open pages ask every two seconds.
_THREADS = 8


def run(settings: Settings, host: str, port: int, terminal: Console) -> None:
    """Serve until the process is told to stop; port 0 takes a free one.

    Raises Misconfigured if it cannot listen on the address.
    """
    given = settings.console_password
    reader = settings.console_reader_password
    passwords = Passwords(
        given.get_secret_value() if given else secrets.token_urlsafe(12),
        reader.get_secret_value() if reader else None,
    )
    address = _resolve(host)
    is_local = ipaddress.ip_address(address).is_loopback
    hosts = ["127.0.0.1", "localhost", "[::1]"] if is_local else None
    app = console.create(connect.engine(), connect.settings().base, passwords, hosts=hosts)
    listener = _listen(address, port)
    server = create_server(app, sockets=[listener], threads=_THREADS, ident=None)
    shown = f"[{address}]" if ":" in address else address
    terminal.print(f"The console is at http://{shown}:{listener.getsockname()[1]}", soft_wrap=True)
    if not given:
        terminal.print(
            "MIGRATION_CONSOLE_PASSWORD is not set. The password until the console stops:\n"
            f"  {passwords.operator}",
            markup=False,
            soft_wrap=True,
        )
    if not is_local:
        terminal.print(
            "The console listens beyond this machine. Put a TLS proxy in front of it: without TLS"
            " nobody can log in.",
            soft_wrap=True,
        )
    try:
        server.run()
    finally:
        server.close()


def _resolve(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        raise Misconfigured(
            f"--host: {host} is not an address", hint="Name an address of this machine."
        ) from None


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except OSError as failure:
        raise Misconfigured(
            f"The console cannot listen on {address}, port {port}: {failure.strerror}",
            hint="Take another one: producer serve --port PORT",
        ) from None
