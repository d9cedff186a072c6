"""Messages as the producer writes them."""

from __future__ import annotations

import base64
import json
from random import Random
from typing import Any
from uuid import UUID

RUN = "20261122-221104-752c"
TASKS = {
    "migration.users": "migration.users",
    "migration.projects": "migration.switch",
    "migration.verify": "migration.verify",
    "migration.credits": "migration.reconcile",
    "migration.control": "migration.organization",
}
QUEUES = tuple(TASKS)
NO_LINKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def new_id(random: Random) -> str:
    return str(UUID(int=random.getrandbits(128), version=4))


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def real(
    random: Random, queue: str, run_id: str = RUN, batch_id: int = 1, *, in_chord: bool = True
) -> dict[str, Any]:
    """A message of a batch, as it lies in the list."""
    task_id, group_id = new_id(random), new_id(random)
    embed: dict[str, Any] = dict(NO_LINKS)
    if in_chord:
        embed["chord"] = callback(random, run_id)
    return {
        "body": encoded([[run_id, batch_id], {}, embed]),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py",
            "task": TASKS[queue],
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": group_id if in_chord else None,
            "group_index": 0 if in_chord else None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": f"('{run_id}', {batch_id})",
            "kwargsrepr": "{}",
            "origin": "gen1@host",
            "ignore_result": None,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
        "properties": {
            "correlation_id": task_id,
            "reply_to": new_id(random),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": new_id(random),
        },
    }


def callback(random: Random, run_id: str = RUN) -> dict[str, Any]:
    """A chord's body, as its header tasks carry it."""
    return {
        "task": "migration.advance",
        "args": [run_id],
        "kwargs": {},
        "options": {"queue": "migration.control", "task_id": new_id(random)},
        "subtask_type": None,
        "immutable": True,
    }
