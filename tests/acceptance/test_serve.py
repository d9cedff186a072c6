"""`producer serve`: where it listens, what its password is, and that others cannot read it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import text

from tests import variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product
from tests.wait import until

Serve = Callable[..., "Served"]


class Served:
    """A console that listens, and what it said at its start."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.database, self.said = process.stderr.readline(), process.stderr.readline()
        found = re.search(r"http://\S+", self.said)
        assert found, self.said
        self.address = found[0]
        self.process = process

    def read(self) -> str:
        """One more line of what it says."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def page(self, password: str, path: str) -> str:
        """A page as somebody sees it who logs in for that alone."""
        cookies = self.log_in(password).cookies
        return httpx.get(f"{self.address}{path}", cookies=cookies, follow_redirects=True).text

    def log_in(self, password: str) -> httpx.Response:
        """What comes of an attempt with that password."""
        with httpx.Client(base_url=self.address) as client:
            found = re.search(r'name="csrf_token" value="([^"]*)"', client.get("/login").text)
            assert found
            form = {"name": "Ada", "password": password, "csrf_token": found[1]}
            return client.post("/login", data=form)


@contextmanager
def serving(product: Product, *arguments: str, **environment: str) -> Iterator[Served]:
    process = product.start("serve", "--port", "0", *arguments, **environment)
    try:
        yield Served(process)
    finally:
        process.kill()
        process.communicate()


def test_without_a_password_it_makes_one_and_says_it_to_the_terminal_alone(
    product: Product,
) -> None:
    with serving(product) as served:
        assert served.address.startswith("http://127.0.0.1:")
        assert "MIGRATION_CONSOLE_PASSWORD is not set" in served.read()
        password = served.read().strip()
        assert len(password) >= 16
        assert served.log_in(password[:-1]).status_code == 403
        assert served.log_in(password).status_code == 303
        served.process.send_signal(signal.SIGINT)
        out, err = served.process.communicate(timeout=COMMAND_SECONDS)
    assert password not in out + err
    with serving(product) as served:
        served.read()
        assert served.read().strip() != password


def test_a_password_that_is_set_is_never_said(product: Product) -> None:
    with serving(product, MIGRATION_CONSOLE_PASSWORD="correct horse") as served:
        assert served.log_in("correct horse").status_code == 303
        served.process.send_signal(signal.SIGINT)
        out, err = served.process.communicate(timeout=COMMAND_SECONDS)
    assert "correct horse" not in served.said + out + err
    assert "Traceback" not in err


def test_an_address_that_cannot_be_had_is_named(product: Product) -> None:
    with serving(product) as served:
        port = served.address.rpartition(":")[2]
        ended = product.run("serve", "--port", port, "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "misconfigured")
    assert port in ended.json["error"]["message"] and "--port" in ended.json["error"]["hint"]
    ended = product.run("serve", "--host", "no.such.invalid", "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "misconfigured")


@pytest.mark.long
def test_a_run_without_workers_raises_an_alarm_until_one_answers_by_the_name_in_flower(
    product: Product,
) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    run_id = product.run("enqueue-all", "--json").json["run_id"]
    words = {
        "MIGRATION_CONSOLE_PASSWORD": "correct horse",
        "MIGRATION_CONSOLE_READER_PASSWORD": "battery staple",
    }
    with serving(product, **words) as served:

        def page() -> str:
            return served.page("battery staple", f"/runs/{run_id}")

        until(lambda: "No worker is running" in page(), "no alarm")
        product.run("pause")
        assert "No worker is running" not in page()
        product.run("resume")
        # So that the run is still open when the worker has answered.
        with product.engine.begin() as connection:
            connection.execute(text("LOCK TABLE users IN ACCESS EXCLUSIVE MODE"))
            with product.worker("--hostname", "night@here"):
                until(lambda: "night@here" in page(), "no worker")
                assert "No worker is running" not in page()


@pytest.mark.long
def test_a_report_is_written_where_it_was_asked_for(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    ended = product.run("report", "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "unknown_run")
    with product.worker():
        run_id = product.run("enqueue-all", "--wait", "--json").json["run_id"]
    file = product.folder / "here" / "night.html"
    ended = product.run("report", "--output", str(file), "--json")
    assert (ended.status, ended.json["run_id"], ended.json["file"]) == (0, run_id, str(file))
    assert run_id in file.read_text(encoding="utf-8")
    assert str(file) in ended.err
