"""What the environment sets: variables, and files that hold a value each, as secrets do."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from models.errors import Misconfigured


def read(variables: Iterable[str], secrets: Iterable[str]) -> dict[str, str]:
    """The variables that are set and not empty; a secret may be in the file that `…_FILE` names.

    Raises Misconfigured for a file that cannot be used.
    """
    found = {name: os.environ[name] for name in variables if os.environ.get(name)}
    for name in secrets:
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
