"""The time as a process under test sees it: the machine's, plus what stands in a file."""

from __future__ import annotations

import mmap
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

_SIZE = struct.calcsize("d")


def make(path: Path) -> None:
    """Write the file for clocks that go right."""
    path.write_bytes(struct.pack("d", 0.0))


def jump(path: Path, seconds: float) -> None:
    """Move the clocks of all the processes that were bent by this file."""
    with path.open("r+b") as file:
        file.write(struct.pack("d", seconds))


def bend(path: Path) -> None:
    """Replace time.time and time.monotonic wherever a module holds them, C code excepted."""
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)

    def bent(real: Callable[[], float]) -> Callable[[], float]:
        return lambda: real() + float(struct.unpack("d", shared[:_SIZE])[0])

    replaced = {id(real): bent(real) for real in (time.time, time.monotonic)}
    for module in list(sys.modules.values()):
        if (getattr(module, "__name__", None) or "").startswith("tests.faults"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in replaced:
                setattr(module, name, replaced[id(value)])
