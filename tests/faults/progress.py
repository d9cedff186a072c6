"""What the matrix has found so far, in a file: an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from tests.faults.verdict import Verdict

PRODUCT = ("celeryconfig.py", "models", "producer", "worker", "tests/faults", "tests/oracle")


class Progress:
    """Verdicts by row and repetition, of one version of the code."""

    def __init__(self, file: Path, version: str) -> None:
        self._file, self._version = file, version
        self._lock = threading.Lock()
        found = json.loads(file.read_text()) if file.exists() else {}
        self._rows: dict[str, dict[str, dict[str, object]]] = (
            found["rows"] if found.get("version") == version else {}
        )

    def add(self, row: str, repetition: int, verdict: Verdict) -> None:
        """Note a verdict; on disk when this returns."""
        with self._lock:
            self._rows.setdefault(row, {})[str(repetition)] = verdict.as_json()
            unfinished = self._file.with_suffix(".new")
            unfinished.write_text(json.dumps({"version": self._version, "rows": self._rows}))
            unfinished.replace(self._file)

    def verdicts(self, row: str) -> dict[int, Verdict]:
        """The verdicts of a row by repetition."""
        with self._lock:
            found = self._rows.get(row, {})
            return {int(key): Verdict(**value) for key, value in found.items()}  # type: ignore[arg-type]


def version_of(root: Path) -> str:
    """A hash of the product and of the matrix: verdicts on other code do not count."""
    digest = hashlib.sha256()
    for name in PRODUCT:
        path = root / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()
