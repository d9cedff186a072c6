"""Writes the archive, part by part: one that cannot be made says why, and the others are there."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from redis.exceptions import RedisError
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.errors import MigrationError, NotAllowed
from models.ledger import revision
from models.postgres import database
from models.postgres.database import transaction
from models.settings import SECRETS, Settings
from producer import logs
from producer.case import ledger
from producer.checks import check
from producer.doctor import examine as doctor
from producer.reports import status
from producer.runs import budget

# Beside the secrets: what may hold a token, or is long.
_HIDDEN = (*SECRETS, "MIGRATION_NOTIFY_COMMAND", "OTEL_EXPORTER_OTLP_ENDPOINT")
# What a check says of keys: the smallest and largest that there are.
_QUOTED_KEYS = re.compile(r"holds [^,:]*")
# How a line of this product's log begins, unless it is JSON.
_LOGFMT = re.compile(r"timestamp=\S+ level=\w+ event=")
_LOG_BYTES = 1_000_000
Part = Callable[[], Any]


def make(
    engine: Engine, settings: Settings, file: Path, log_files: Sequence[Path] = ()
) -> dict[str, str]:
    """Write the archive, readable for its owner only; returns the parts that lack, and why.

    Raises NotAllowed where the file is there already.
    """
    parts: dict[str, Part] = {
        "versions": lambda: _versions(engine),
        "settings": lambda: _settings(settings),
        "status": lambda: status.read(engine, None).model_dump(mode="json"),
        "runs": lambda: status.history(engine, ledger.MOST_ROWS),
        "doctor": lambda: doctor.examine(engine, settings, None, fixes=False).model_dump(
            mode="json"
        ),
        "check": lambda: _check(engine, settings),
    } | {
        f"logs/{number}-{each.name}": partial(_log, each)
        for number, each in enumerate(log_files, start=1)
    }
    made: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, part in (parts | {"ledger": lambda: _ledger(engine)}).items():
        try:
            found = part()
        except (MigrationError, DBAPIError, RedisError, OperationalError, OSError) as failure:
            missing[name] = _why(failure)
            continue
        if name == "ledger":
            made |= {f"ledger/{table}": rows for table, rows in found.items()}
        else:
            made[name] = found
    paused_by = made.get("status", {}).get("paused_by")
    for name in {"status", "doctor", "runs"} & made.keys():
        made[name] = _without_names(made[name], paused_by)
    _write(file, made | {"missing": missing})
    return missing


def _without_names(found: Any, paused_by: str | None) -> Any:
    """The same without the person who paused the run."""
    if paused_by is None or paused_by == budget.PAUSED_BY:
        return found
    text = json.dumps(found, default=str, ensure_ascii=False)
    shown = json.dumps(paused_by, ensure_ascii=False)[1:-1]
    return json.loads(text.replace(shown, "an operator"))


def _why(failure: Exception) -> str:
    if isinstance(failure, DBAPIError):
        return database.classify(failure).message
    return logs.name_of(failure)


def _versions(engine: Engine) -> dict[str, Any]:
    found = {
        "database": database.name_of(engine),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {each.name: each.version for each in distributions()},
    }
    with transaction(engine) as connection:
        found["postgresql"] = connection.scalar(sa.text("SHOW server_version"))
        if ledger_revision := revision.read(connection):
            found["ledger"] = ledger_revision
    return found


def _settings(settings: Settings) -> dict[str, str]:
    """Each setting by its variable; of what may hold a secret, whether it is set."""
    found = {}
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        hidden = field.alias in _HIDDEN or isinstance(value, SecretStr)
        is_set = settings.sets(str(field.alias))
        found[str(field.alias)] = ("set" if is_set else "not set") if hidden else str(value)
    return found


def _check(engine: Engine, settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "name": row.name,
            "verdict": row.verdict,
            "found": _QUOTED_KEYS.sub("holds …", row.found),
        }
        for row in check.examine(engine, settings)
    ]


def _log(file: Path) -> dict[str, Any]:
    """The end of a log: the lines of this product, and how many others were left out.

    What other programs write to the same place may quote anything.
    """
    with file.open("rb") as lines:
        lines.seek(max(0, file.stat().st_size - _LOG_BYTES))
        found = lines.read().decode(errors="replace").splitlines()
    ours = [line for line in found if _is_ours(line)]
    return {"lines": ours, "left_out": len(found) - len(ours)}


def _is_ours(line: str) -> bool:
    # The console's lines name addresses of people.
    if "origin" in line:
        return False
    if _LOGFMT.match(line):
        return True
    try:
        fields = json.loads(line)
    except ValueError:
        return False
    return isinstance(fields, dict) and {"timestamp", "level", "event"} <= fields.keys()


def _ledger(engine: Engine) -> dict[str, list[dict[str, Any]]]:
    with transaction(engine) as connection:
        return ledger.read(connection)


def _write(file: Path, parts: dict[str, Any]) -> None:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise NotAllowed(f"{file} is there already", hint="Name another file.") from None
    with os.fdopen(handle, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in parts.items():
            data = json.dumps(content, indent=1, default=str, ensure_ascii=False).encode()
            member = tarfile.TarInfo(f"{file.name.split('.')[0]}/{name}.json")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            archive.addfile(member, io.BytesIO(data))
