"""The workers: `celery -A worker worker`."""

import sys

from models.errors import MigrationError

try:
    from worker.app import app as celery
except MigrationError as error:
    # A wrong setting: whoever starts a worker needs its name, and no traceback.
    print(f"Error: {error.message}\n{error.hint}", file=sys.stderr)
    sys.exit(error.exit_status)

__all__ = ["celery"]
