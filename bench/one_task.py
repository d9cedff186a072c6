"""One Celery task a user, and one a project: what most people would write first.

Run as a worker's application: `celery -A bench.one_task worker`. Both forms do the same writes:
`as_guided` commits with every call like the guide, `in_one` commits once a task.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from celery import Celery
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from bench import guide, mapping
from models.postgres import database

app = Celery("one_task", broker=os.environ.get("BENCH_BROKER"))
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@cache
def _engine() -> Engine:
    return database.create(os.environ["DATABASE_URL"])


@cache
def _classes() -> Any:
    return mapping.map_tables(_engine())


@app.task(name="bench.user")
def migrate_user(user_id: str, in_one: bool) -> None:
    """Migrate one user, in one transaction or in one a call."""
    with Session(_engine(), expire_on_commit=False) as session:
        user = session.get(_classes().User, user_id)
        commit = session.flush if in_one else session.commit
        guide.migrate_user(session, _classes(), user, commit=commit)
        session.commit()


@app.task(name="bench.project")
def migrate_project(project_id: str, in_one: bool) -> None:
    """Migrate one project, in one transaction or in one a call."""
    with Session(_engine(), expire_on_commit=False) as session:
        project = session.get(_classes().Project, project_id)
        commit = session.flush if in_one else session.commit
        guide.migrate_project(session, _classes(), project, commit=commit)
        session.commit()
