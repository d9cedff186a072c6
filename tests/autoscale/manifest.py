"""What the manifests in `deploy` say about scaling and the start, nothing repeated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
# What is installed, and what starts the migration.
MANIFESTS, START = DEPLOY / "kubernetes.yaml", DEPLOY / "start.yaml"


@dataclass(frozen=True)
class Scaled:
    """A deployment and its ScaledObject. Times in seconds."""

    name: str
    command: list[str]
    grace_seconds: int
    query: str
    target: float
    activation: float
    most: int
    polling_seconds: int
    cooldown_seconds: int
    stabilization_seconds: int


@cache
def documents() -> list[dict[str, Any]]:
    """All objects of the manifests."""
    files = (MANIFESTS, START)
    return [found for file in files for found in yaml.safe_load_all(file.read_text()) if found]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind by name."""
    return {found["metadata"]["name"]: found for found in documents() if found["kind"] == kind}


def scaled() -> list[Scaled]:
    """Every deployment that KEDA scales."""
    deployments = of_kind("Deployment")
    return [_scaled(found, deployments) for found in of_kind("ScaledObject").values()]


def producer() -> list[str]:
    """The command of the job that opens the run."""
    (job,) = of_kind("Job").values()
    return _container(job)["command"]  # type: ignore[no-any-return]


def _scaled(found: dict[str, Any], deployments: dict[str, dict[str, Any]]) -> Scaled:
    spec = found["spec"]
    deployment = deployments[spec["scaleTargetRef"]["name"]]
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "postgresql"
    assert spec["minReplicaCount"] == 0
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return Scaled(
        name=deployment["metadata"]["name"],
        command=_container(deployment)["command"],
        grace_seconds=deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"],
        query=trigger["metadata"]["query"],
        target=float(trigger["metadata"]["targetQueryValue"]),
        activation=float(trigger["metadata"]["activationTargetQueryValue"]),
        most=spec["maxReplicaCount"],
        polling_seconds=spec["pollingInterval"],
        cooldown_seconds=spec["cooldownPeriod"],
        stabilization_seconds=behavior["scaleDown"]["stabilizationWindowSeconds"],
    )


def _container(workload: dict[str, Any]) -> dict[str, Any]:
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return container  # type: ignore[no-any-return]
