"""The rules, and all that the Grafana dashboard asks, in a real Prometheus over a real run."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from producer.demo import sample
from tests.acceptance.conftest import Product
from tests.acceptance.test_metrics import answers, exporting
from tests.integration.test_probing import closed_port
from tests.system import packages
from tests.wait import until

DEPLOY = Path(__file__).parents[2] / "deploy"
# These show something only where something is wrong.
OFTEN_EMPTY = ("Time left", "Rows a second", "Rows left")


def promtool(*arguments: str | Path) -> str:
    ended = subprocess.run(
        [*packages.command("promtool", "prometheus"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")
    promtool("test", "rules", DEPLOY / "prometheus/alerts_test.yml")
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    tests = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    # An alert that no test expects to fire could be one that cannot.
    for name in re.findall(r"alert: (\w+)", rules):
        assert re.search(rf"alertname: {name}\n +exp_alerts:\n", tests), name


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """A Prometheus on the product's own settings, but for the exporter's address."""
    for name in ("prometheus.yml", "alerts.yml"):
        text = (DEPLOY / "prometheus" / name).read_text()
        text = text.replace("metrics:9464", target).replace(": 5s", ": 1s")
        (folder / name).write_text(text)
    port = closed_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *packages.command("prometheus"),
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/-/ready"))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.kill()
        process.wait()
        print((folder / "log").read_text()[-3000:])


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return list(answer["data"]["result"])


def alerts(client: httpx.Client) -> set[str]:
    found = client.get("/alerts").json()["data"]["alerts"]
    return {alert["labels"]["alertname"] for alert in found}


def test_prometheus_sees_a_run_as_its_report_and_every_panel_has_an_answer(
    product: Product, tmp_path: Path
) -> None:
    with product.engine.begin() as connection:
        sample.load(connection, 3_000)
    (tmp_path / "prometheus").mkdir()
    dashboard = json.loads((DEPLOY / "grafana/dashboards/migration.json").read_text())
    with (
        exporting(product) as address,
        prometheus(tmp_path / "prometheus", address.split("/")[2]) as client,
    ):
        until(lambda: ask(client, "migration_ledger_up == 1"))
        with product.worker():
            ended = product.run("enqueue-all", "--wait", "--json", MIGRATION_BATCH_SIZE="50")
        assert ended.status == 3, ended.err
        done = f'migration_run_info{{state="{ended.json["state"]}"}}'
        until(lambda: ask(client, done))
        (migrated,) = ask(client, 'migration_legacy_rows{entity="users",state="migrated"}')
        assert float(migrated["value"][1]) == ended.json["users"]["migrated"]
        assert len(dashboard["panels"]) == 17
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                found = ask(client, target["expr"])
                assert found or panel["title"] in OFTEN_EMPTY, (panel["title"], target["expr"])
        # It was running: Prometheus has seen more than the end.
        assert ask(client, 'max_over_time(migration_run_info{state="running"}[10m])')
        assert ask(client, "max_over_time(migration_rows_per_second[10m]) > 0")
        assert not alerts(client)
        assert {rule["health"] for rule in _rules(client)} == {"ok"}


def _rules(client: httpx.Client) -> list[dict[str, Any]]:
    (group,) = client.get("/rules").json()["data"]["groups"]
    return list(group["rules"])
