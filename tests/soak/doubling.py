"""The product with every message published twice: the workers' Celery app, and the producer."""

from __future__ import annotations

from typing import Any

from kombu.transport.redis import Channel

from producer.cli import main
from worker import celery

__all__ = ["celery", "main"]

_put = Channel._put


def _put_twice(self: Channel, queue: str, message: Any, **options: Any) -> None:
    _put(self, queue, message, **options)
    _put(self, queue, message, **options)


Channel._put = _put_twice
