"""The file that says that a worker's main loop runs; probes and the demonstration look at it."""

from __future__ import annotations

import socket
from pathlib import Path


def file_in(home: Path) -> Path:
    """The file of this host's worker in a MIGRATION_HOME; shells name it by `$(uname -n)`."""
    return home / f"worker.alive.{socket.gethostname()}"
