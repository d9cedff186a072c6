"""The workers: `celery -A worker worker`."""

from worker.app import app as celery

__all__ = ["celery"]
