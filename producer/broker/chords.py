"""Celery's Redis results, for a chord's count only: nobody here ever waits for a single result."""

from __future__ import annotations

from typing import Any

import redis
from celery.backends.redis import RedisBackend

from producer import connect
from producer.broker import namespace, transport


class ChordBackend(RedisBackend):
    """Keys of the ledger's, and no subscription to the result of every message that it publishes.

    Celery's own backend does, once a header task: 10,000 SUBSCRIBEs and 54 MB for a chord of
    10,000, and a traceback from `__del__` when the process ends before the chord.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Celery has no setting for when TCP gives up.
        parameters: dict[str, Any] = vars(self)["connparams"]
        if "path" not in parameters:
            parameters |= connect.keepalive()
        given = parameters.get("connection_class", redis.Connection)
        parameters["connection_class"] = transport.LEAVING.get(given, given)

    def _get_key_for(self, prefix: bytes, id: str, key: str = "") -> bytes:
        root: bytes = self.key_t(namespace.prefix())
        rest: bytes = super()._get_key_for(prefix, id, key)  # type: ignore[misc]
        return root + rest

    def add_pending_result(self, result: Any, *_: Any, **__: Any) -> Any:
        return result

    def add_pending_results(self, results: Any, *_: Any, **__: Any) -> Any:
        return list(results)
