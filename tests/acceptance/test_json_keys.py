"""The keys of --json: the same for a command's success, its error and its wrong usage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from producer.cli import cli
from tests import variants
from tests.acceptance.conftest import COMMAND_SECONDS, Product, said
from tests.integration.test_probing import closed_port

# Every command, in an order in which each succeeds: on a school before the run, and after it.
BEFORE = """
check; plan; schema upgrade; schema show; schema show --mapping; quarantine --preview; backup safe;
restore safe --yes; enqueue-all --dry-run; enqueue-all; tune --batch-size 50; pause; resume;
cancel --yes; resume
"""
AFTER = """
enqueue-all --wait; status; status --history; differences; quarantine; doctor; health; performance;
report; case help.zip; new badges; repair missing-data; repair tools --dry-run; repair credits;
verify --wait; reconcile --wait; retry --wait; rollback --wait --yes; forget RUN --yes;
schema downgrade --yes; servers stop
"""
# They end when somebody stops them, or take long: their errors alone are compared.
LONG = {"demo", "serve", "metrics"}
IN_ONE_PROCESS = """
import contextlib, json, sys
from producer.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["producer", *words, "--json"]
    with contextlib.suppress(SystemExit):
        main()
"""


def commands(group: click.Group, path: str = "") -> Iterator[str]:
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} ")
        else:
            yield f"{path}{name}"


@pytest.mark.long
def test_the_keys_are_those_of_success_whatever_goes_wrong(product: Product) -> None:
    known = set(commands(cli))
    keys: dict[str, set[str]] = {}
    run = ""

    def succeed(line: str) -> None:
        nonlocal run
        words = line.replace("RUN", run).split()
        name = next(name for name in (" ".join(words[:2]), words[0]) if name in known)
        found = product.run(*words, "--json").json
        assert found["error"] is None, (line, found["error"])
        run = found.get("run_id") or run
        assert keys.setdefault(name, found.keys()) == found.keys(), line

    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, 30)
    for line in BEFORE.split(";"):
        succeed(line.strip())
    with product.worker():
        for line in AFTER.split(";"):
            succeed(line.strip())
    assert known - keys.keys() == LONG
    arguments = {"backup": ["x"], "case": ["x"], "restore": ["x"], "forget": ["x"], "new": ["x"]}
    asked = [
        (name, kind, [*name.split(), *words])
        for name in sorted(known)
        for kind, words in (("misconfigured", arguments.get(name, [])), ("usage", ["--no-such"]))
    ]
    ended = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, json.dumps([words for _, _, words in asked])],
        env=product.environment | {"MIGRATION_BATCH_SIZE": "none"},
        capture_output=True,
        text=True,
        check=True,
    )
    for (name, kind, _), line in zip(asked, ended.stdout.splitlines(), strict=True):
        found = json.loads(line)
        assert found["error"]["kind"] == kind, name
        assert found.keys() == keys.setdefault(name, found.keys()), (name, kind)


def test_ctrl_c_gives_the_object_too(product: Product) -> None:
    port = str(closed_port())
    process = product.start("metrics", "--port", port, "--json")
    said(process, "Metrics at")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=COMMAND_SECONDS)
    assert process.returncode == 130
    assert {"database", "address", "error"} == json.loads(out).keys()
    assert json.loads(out)["error"]["kind"] == "stopped"
