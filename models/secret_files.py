"""Settings that lie in a file each, as container secrets do: `DATABASE_URL_FILE` and so on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.errors import Misconfigured


def read(variables: Iterable[str]) -> dict[str, Any]:
    """The values of the variables whose name with _FILE names a file; raises Misconfigured."""
    found = {}
    for name in variables:
        path = os.environ.get(f"{name}_FILE")
        if not path:
            continue
        if os.environ.get(name):
            raise Misconfigured(f"{name} and {name}_FILE are both set", hint="Unset one of them.")
        try:
            found[name] = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as failure:
            reason = getattr(failure, "strerror", None) or "it is no text"
            raise Misconfigured(
                f"{name}_FILE: {path} cannot be read: {reason}",
                hint="Name a file that holds the value, and nothing else.",
            ) from None
        if not found[name]:
            raise Misconfigured(f"{name}_FILE: {path} is empty", hint="Write the value into it.")
    return found
