"""The dashboard and the alerts name only metrics that there are, and Grafana can lay it out."""

from __future__ import annotations

import json
import re
from pathlib import Path

DEPLOY = Path(__file__).parents[2] / "deploy"
SOURCE = (DEPLOY.parent / "producer/reports/metrics.py").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/migration.json").read_text())


def exported() -> set[str]:
    named = set(re.findall(r'_gauge\(\s*"(\w+)"', SOURCE))
    named |= {"batch_seconds_bucket", "reconciler_actions_total"}
    named |= {"batch_attempts_total", "batch_expiries_total"}
    return {f"migration_{name}" for name in named}


def test_rules_and_panels_name_metrics_that_are_exported() -> None:
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    panels = " ".join(t["expr"] for p in DASHBOARD["panels"] for t in p["targets"])
    assert len(exported()) > 20
    for text in (rules, panels):
        used = set(re.findall(r"migration_\w+", text))
        assert used and used <= exported(), used - exported()


def test_no_panel_lies_on_another_or_has_no_source_or_description() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["description"] and panel["datasource"]["uid"] == "migration"
        assert all(target["datasource"]["uid"] == "migration" for target in panel["targets"])
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert "uid: migration" in source
