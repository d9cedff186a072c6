"""`celery -A worker flower`: closed without a login, and no remote control unless asked for."""

from __future__ import annotations

import json
import socket
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from tests import variants
from tests.acceptance.conftest import Product, count
from tests.wait import until

PASSWORD = "flower-Secret/3"
LOGIN = ("operator", PASSWORD)


@contextmanager
def flower(
    product: Product, *arguments: str, **environment: str
) -> Iterator[tuple[httpx.Client, set[str]]]:
    """A client of a Flower that answers, and the addresses at which it listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return client.get("/healthcheck").is_success
        return False

    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
        product.celery("flower", f"--port={port}", *arguments, **environment) as process,
    ):
        until(answers)
        listens = psutil.Process(process.pid).net_connections("inet")
        yield client, {one.laddr.ip for one in listens if one.status == psutil.CONN_LISTEN}


def login_file(folder: Path) -> str:
    file = folder / "login"
    file.write_text(":".join(LOGIN) + "\n")
    return str(file)


def test_without_a_login_it_answers_this_machine_only_and_changes_nothing(product: Product) -> None:
    with product.worker("-n", "one@%h"), flower(product) as (client, listens):
        assert listens == {"127.0.0.1"}
        assert client.get("/workers").status_code == 200
        name = worker_name(product)
        assert client.post(f"/api/worker/shutdown/{name}").status_code == 401
        assert client.get("/api/workers").status_code == 401
        assert worker_name(product) == name


def test_with_a_login_from_a_file_every_page_asks_for_it_and_control_is_refused(
    product: Product,
) -> None:
    auth = {"FLOWER_BASIC_AUTH_FILE": login_file(product.folder)}
    with product.worker("-n", "one@%h"), flower(product, **auth) as (client, _):
        name = worker_name(product)
        for page in ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks"):
            assert client.get(page).status_code == 401, page
            assert client.get(page, auth=("operator", "wrong")).status_code == 401, page
        assert client.get("/workers", auth=LOGIN).status_code == 200
        assert PASSWORD not in client.get("/broker", auth=LOGIN).text
        # What they show is the same for everybody, whatever the login.
        assert client.get("/metrics").status_code == client.get("/healthcheck").status_code == 200
        for action in (
            f"worker/shutdown/{name}",
            f"worker/pool/restart/{name}",
            f"worker/queue/cancel-consumer/{name}?queue=migration.users",
            "task/apply/migration.users",
            "task/send-task/migration.users",
        ):
            answer = client.post(f"/api/{action}", auth=LOGIN)
            assert answer.status_code == 403, (action, answer.status_code)
        assert worker_name(product) == name
    log = product.folder / f"celery-{len(product.workers) - 1}.log"
    assert PASSWORD not in log.read_text()


def test_the_events_of_many_tasks_are_sent_together_and_none_is_missing(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 300)
    with (
        closing(redis.from_url(product.environment["REDIS_URL"])) as client,
        client.pubsub() as heard,
    ):
        heard.psubscribe("*.celeryev*")
        with product.worker() as worker:
            product.run("enqueue-all", "--wait", MIGRATION_BATCH_SIZE="50")
            worker.terminate()
            until(lambda: worker.poll() is not None)
        sent: list[list[dict[str, Any]]] = []
        while message := heard.get_message(timeout=1):
            if message["type"] == "pmessage":
                found = json.loads(b64decode(json.loads(message["data"])["body"]))
                sent.append(found if isinstance(found, list) else [found])
    events = [event for together in sent for event in together]
    began, ended = (
        [event["uuid"] for event in events if event["type"] == kind]
        for kind in ("task-started", "task-succeeded")
    )
    # The last one, too, after which the worker is stopped.
    assert sorted(ended) == sorted(began)
    assert len(ended) > count(product, "SELECT count(*) FROM migration.batches")
    assert sum(together[0]["type"].startswith("task-") for together in sent) < len(ended)


@pytest.mark.long
def test_remote_control_is_there_for_whoever_asks_for_it(product: Product) -> None:
    auth = {"FLOWER_BASIC_AUTH": ":".join(LOGIN), "FLOWER_READ_ONLY": "false"}
    with product.worker("-n", "one@%h") as worker, flower(product, **auth) as (client, _):
        name = worker_name(product)
        until(lambda: name in client.get("/api/workers?refresh=1", auth=LOGIN).text)
        answer = client.post(f"/api/worker/shutdown/{name}", auth=LOGIN)
        assert answer.status_code == 200, answer.text
        until(lambda: worker.poll() is not None)


def worker_name(product: Product) -> str:
    """The worker that answers, once it does."""
    found: list[str] = []

    def answers() -> bool:
        checks = product.run("health", "--json").json["checks"]
        (workers,) = (check for check in checks if check["name"] == "workers")
        found[:] = [workers["found"].rpartition(": ")[2]]
        return bool(workers["verdict"] == "ok")

    until(answers)
    return found[0]
