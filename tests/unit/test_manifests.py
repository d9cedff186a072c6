"""The Kubernetes manifests: valid by the API's own schemas, and right about the product."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1

from producer.broker.messages import QUEUES
from tests.autoscale.manifest import DEPLOY, MANIFESTS, START, documents, of_kind, scaled
from worker.shutdown import GRACE_SECONDS
from worker.tasks import BATCH_TASKS, HARD_LIMIT_SECONDS

# The oldest that the chart allows, and the newest that there are schemas of.
VERSIONS = ("1.29", "1.37")


def pod_specs() -> list[dict[str, Any]]:
    workloads = (of_kind("Deployment") | of_kind("Job")).values()
    return [found["spec"]["template"]["spec"] for found in workloads]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_valid_by_the_apis_schema(version: str) -> None:
    kinds = set()
    for found in documents():
        if not found["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(found, version, strict=True)
            kinds.add(found["kind"])
    assert kinds == {"Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service"}
    wrong = {**next(iter(of_kind("Job").values())), "spec": {"backofLimit": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_what_is_installed_starts_nothing_and_the_start_is_one_job() -> None:
    installed = [found["kind"] for found in yaml.safe_load_all(MANIFESTS.read_text()) if found]
    assert not {"Job", "CronJob", "Pod"} & set(installed)
    (job,) = [found for found in yaml.safe_load_all(START.read_text()) if found]
    assert (job["kind"], job["metadata"]["name"]) == ("Job", "migration-producer")
    values = yaml.safe_load((DEPLOY / "chart/values.yaml").read_text())
    assert values["producer"]["enabled"] is False
    template = (DEPLOY / "chart/templates/producer.yaml").read_text()
    # The job of a revision of its own would start with every upgrade of the release.
    assert "Release.Revision" not in template


def test_the_notes_after_an_install_list_the_steps_in_their_order() -> None:
    notes = (DEPLOY / "chart/templates/NOTES.txt").read_text()
    steps = ("schema upgrade", "producer check", "producer plan", "producer backup", "--show-only",
             "status --watch")  # fmt: skip
    places = [notes.index(step) for step in steps]
    assert places == sorted(places)


def test_every_object_of_keda_is_valid_by_its_crd_and_has_no_field_that_it_does_not_know() -> None:
    found = of_kind("ScaledObject") | of_kind("TriggerAuthentication")
    assert len(found) == len(QUEUES) + 1
    for each in found.values():
        kind = getattr(v1alpha1, each["kind"])
        assert kind.model_validate(each).model_dump(by_alias=True, exclude_unset=True) == each


def test_every_queue_has_a_deployment_a_budget_and_a_scaler_of_its_own() -> None:
    served = {of.name: of for of in scaled()}
    assert of_kind("PodDisruptionBudget").keys() == served.keys()
    assert len(served) == len(QUEUES)
    for queue in QUEUES:
        of = served["migration-" + queue.removeprefix("migration.")]
        assert f"--queues={queue}" in of.command
        assert of.query == f"SELECT batches FROM migration.backlog WHERE queue = '{queue}'"
        assert f"--concurrency={of.target:.0f}" in of.command
        assert of.activation == 0 < of.most


def test_a_pod_may_take_longer_to_end_than_any_batch_that_has_a_limit() -> None:
    limits = [limit for limit in BATCH_TASKS.values() if limit]
    assert max(limits) == HARD_LIMIT_SECONDS
    for of in scaled():
        # One without a limit is released, as all are, when the worker is told to stop.
        assert of.grace_seconds > HARD_LIMIT_SECONDS > GRACE_SECONDS


def test_no_pod_is_root_can_write_to_its_image_or_sees_the_api() -> None:
    assert len(pod_specs()) == len(QUEUES) + 2
    for spec in pod_specs():
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_secrets_are_named_and_never_written() -> None:
    assert not of_kind("Secret")
    for spec in pod_specs():
        for container in spec["containers"]:
            names = {variable["name"]: variable["value"] for variable in container["env"]}
            assert names["DATABASE_URL_FILE"] == "/run/secrets/migration/database-url"
            assert not {"DATABASE_URL", "REDIS_URL"} & names.keys()
    assert "://" not in str(documents())


def test_every_worker_and_the_exporter_has_probes() -> None:
    for deployment in of_kind("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= container.keys()
