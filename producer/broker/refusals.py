"""What Redis and its client say, in words of our own: their texts may quote an address."""

from __future__ import annotations

import re
import socket
import ssl

# The first one that matches is said.
_WORDS = (
    (r"WRONGPASS|NOAUTH|invalid (username-)?password|invalid username|Authentication required"
     r"|without any password configured", "the login is refused"),
    (r"max number of clients", "it has too many clients"),
    (r"\bOOM\b|OutOfMemory", "it is out of memory, and refuses writes"),
    (r"READONLY|read.?only", "it is a replica, and refuses writes"),
    (r"MASTER.?DOWN", "it is a replica whose primary is down"),
    (r"LOADING|loading the dataset", "it is loading its data"),
    (r"MISCONF", "it cannot save to its disk, and refuses writes"),
    (r"NOREPLICAS", "it has too few replicas, and refuses writes"),
    (r"CROSSSLOT|Moved|hash to the same slot|cluster", "it is a cluster"),
    (r"DB index is out of range", "it has no database of that number"),
    (r"unknown command", "it does not know a command that is needed"),
    (r"Connection refused", "connection refused: no server listens there"),
    (r"No such file or directory", "no server listens on that socket"),
    (r"Name or service not known|Temporary failure in name|getaddrinfo|nodename nor servname",
     "the host's name is unknown"),
    (r"timed out|Timeout", "no answer in time"),
    (r"unreachable|No route to host", "the network does not reach the host"),
    (r"Permission denied", "the socket may not be used"),
    (r"certificate", "its certificate cannot be verified"),
    (r"SSL|TLS", "the encrypted connection fails"),
    (r"closed by server|reset by peer|Broken pipe|EOF", "the server closed the connection"),
)  # fmt: skip
_KINDS = {"redis.exceptions.RedisError", "kombu.exceptions.OperationalError"}
_COMMAND = re.compile(r"permissions to run the '([\w|-]+)' command")


def is_of_redis(failure: BaseException) -> bool:
    """Whether a Redis client raised it, or Kombu for one.

    By name: most commands use neither, and an import of redis-py takes longer than their work.
    """
    return not _KINDS.isdisjoint(_names(failure))


def may_not(failure: BaseException) -> bool:
    """Whether Redis refused a command for lack of a privilege."""
    return "redis.exceptions.NoPermissionError" in _names(failure)


def _names(failure: BaseException) -> list[str]:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(failure).__mro__]


def of_redis(failure: BaseException) -> str:
    """Why Redis cannot be used, by what the error and its causes are about."""
    chain: list[BaseException] = []
    cause: BaseException | None = failure
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in chain):
        return "its certificate cannot be verified"
    if any(isinstance(each, socket.gaierror) for each in chain):
        return "the host's name is unknown"
    for each in chain:
        if may_not(each):
            found = _COMMAND.search(str(each))
            return f"its user may not {f'run {found[1].upper()}' if found else 'do that'}"
        for pattern, words in _WORDS:
            if re.search(pattern, f"{type(each).__name__} {each}", re.IGNORECASE):
                return words
    return f"it fails with {type(failure).__name__}"
