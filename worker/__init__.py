"""The workers: `celery -A worker worker`."""

import sys
from typing import Any

from models.errors import MigrationError

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
