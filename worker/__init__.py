"""The workers: `celery -A worker worker`."""

import sys
from typing import Any

try:
    from models.errors import MigrationError
except ModuleNotFoundError as missing:
    if missing.name != "models.errors":
        raise
    # Celery looks in the working folder first: an application's own `models` may be there.
    print(
        "Error: The working folder has another package models\n"
        "Start the worker in another folder: cd / && celery -A worker worker",
        file=sys.stderr,
    )
    sys.exit(2)

__all__ = ["celery"]


def __getattr__(name: str) -> Any:
    """The Celery application, made when it is asked for: its settings are read then."""
    if name != "celery":
        raise AttributeError(name)
    try:
        from worker.app import app
    except MigrationError as error:
        # A wrong setting: the operator needs its name, and no traceback.
        print(f"Error: {error.message}\n{error.hint}", file=sys.stderr)
        sys.exit(error.exit_status)
    return app
