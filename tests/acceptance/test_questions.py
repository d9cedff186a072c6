"""What a command says before it acts, and that a no changes nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from sqlalchemy import text

from tests import variants
from tests.acceptance.conftest import Product, count
from tests.wait import PATIENCE_SECONDS, until

STATES = "SELECT count(*) FROM migration.runs WHERE state = '{}'"

# A signal that came too early is sent so often.
ATTEMPTS = 3


def answered(product: Product, answer: bytes | None, *arguments: str) -> tuple[int, str]:
    """A command at a terminal whose question gets that answer; None: Ctrl-C."""
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "producer"), *arguments, "--json"],
        env=product.environment,
        cwd=product.folder,
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=end,
        start_new_session=True,
    ) as process:
        os.close(end)
        said = b""
        while b"[y/N]" not in said:
            ready, _, _ = select.select([terminal], [], [], 60)
            assert ready and process.poll() is None, said
            said += os.read(terminal, 4096)
        if answer is not None:
            os.write(terminal, answer)
        try:
            out = _end(process, signal.SIGINT if answer is None else None)
        finally:
            process.kill()
    os.set_blocking(terminal, False)
    try:
        while part := os.read(terminal, 4096):
            said += part
    except OSError:
        pass
    os.close(terminal)
    shown = said.decode().replace("\r\n", "\n")
    assert "Nothing was changed" in shown
    assert json.loads(out)["error"]["kind"] == "declined"
    return process.returncode, " ".join(shown.split())


def _is_asleep(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_SLEEPING


def _end(process: subprocess.Popen[bytes], sent: signal.Signals | None) -> bytes:
    """What it says on stdout until it ends; the signal again where it came just before the read.

    Not at once: a second one would kill a process that is ending because of the first.
    """
    for _ in range(ATTEMPTS):
        if sent:
            until(lambda: _is_asleep(process.pid), "it does not read the answer")
            process.send_signal(sent)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=PATIENCE_SECONDS / ATTEMPTS)[0]
    raise AssertionError("the command did not end")


@pytest.mark.long
@pytest.mark.parametrize("answer", [b"n\n", b"\n", None], ids=["no", "return", "ctrl-c"])
def test_a_question_names_what_it_is_about_and_no_changes_nothing(
    product: Product, answer: bytes | None
) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
        name = connection.scalar(text("SELECT current_database()"))
    with product.worker():
        run = product.run("enqueue-all", "--wait", "--json").json["run_id"]
    assert product.run("backup", "safe").status == 0
    tools = count(product, "SELECT count(*) FROM ai_tools")
    for arguments, words in (
        (["rollback"], (run, "rows")),
        (["forget", run], (run,)),
        (["restore", "safe"], ("public.users (60 rows)", "keys of Redis", "database")),
    ):
        status, shown = answered(product, answer, *arguments)
        assert status == 1
        question = shown[shown.index("[y/N]") - 2000 if len(shown) > 2000 else 0 :]
        for word in (*words, f"/{name}", "postgres@"):
            assert word in question, shown
    assert count(product, "SELECT count(*) FROM ai_tools") == tools
    assert count(product, STATES.format("completed_with_quarantine")) == 1
    assert count(product, "SELECT count(*) FROM migration.before_images") > 0


def test_cancel_and_downgrade_ask_as_well_and_return_or_ctrl_c_is_a_no(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 60)
    run = product.run("enqueue-all", "--json").json["run_id"]
    status, shown = answered(product, b"\n", "cancel")
    assert status == 1 and run in shown
    assert count(product, STATES.format("cancelled")) == 0
    assert product.run("cancel", "--yes").status == 0
    status, shown = answered(product, None, "schema", "downgrade")
    assert status == 1 and "migration.runs" in shown
    assert count(product, "SELECT count(*) FROM migration.runs") == 1


def test_a_rollback_of_nothing_is_refused_before_it_asks(product: Product) -> None:
    ended = product.run("rollback", "--json")
    assert (ended.status, ended.json["error"]["kind"]) == (2, "unknown_run")


def test_every_command_says_its_database_first(product: Product) -> None:
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 10)
        name = connection.scalar(text("SELECT current_database()"))
    for arguments in (["schema", "show"], ["check"], ["status"], ["quarantine"], ["health"]):
        ended = product.run(*arguments, "--json")
        assert ended.json["database"].endswith(f"/{name}")
        assert ended.json["database"].startswith("postgres@")
        assert ended.err.splitlines()[0] == f"Database: {ended.json['database']}"
    wrong = product.run("status", "--json", DATABASE_URL="mysql://x")
    assert "database" in wrong.json and wrong.json["database"] is None


@pytest.mark.parametrize("command", [["status"], ["enqueue-all"], ["serve"], ["restore", "x"]])
def test_without_settings_nothing_is_started(product: Product, command: list[str]) -> None:
    home = product.folder / "home"
    (home / "reports").mkdir(parents=True)
    empty = {"DATABASE_URL": "", "REDIS_URL": ""}
    ended = product.run(*command, "--json", **empty)
    assert (ended.status, ended.json["error"]["kind"]) == (2, "misconfigured")
    assert ended.json["error"]["message"] == "DATABASE_URL is not set"
    assert [path.name for path in home.iterdir()] == ["reports"]
    # Nor in the working folder, where no home is set.
    del product.environment["MIGRATION_HOME"]
    assert product.run(*command, "--json", **empty).status == 2
    assert not (product.folder / ".migration").exists()


def test_a_worker_without_settings_starts_nothing(product: Product) -> None:
    product.environment |= {"DATABASE_URL": "", "REDIS_URL": ""}
    with product.celery("worker") as process:
        until(lambda: process.poll() is not None)
    assert process.returncode != 0
    assert "DATABASE_URL is not set" in (product.folder / "celery-0.log").read_text()
    assert not (product.folder / "home").exists()


def test_the_servers_that_were_initialised_before_are_used(product: Product) -> None:
    home = Path(os.environ["MIGRATION_HOME"])
    ended = product.run(
        "schema", "show", "--json", DATABASE_URL="", REDIS_URL="", MIGRATION_HOME=str(home)
    )
    assert ended.json["database"].endswith("/dashboard")
