"""The manifests, without a cluster: they fit the schemas, their references resolve, and they scale on known lag."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped] # it has no annotations
import pytest
import yaml
from jsonschema.validators import validator_for

from streams.config.settings import Settings, variables
from streams.monitoring.metrics import Metrics
from streams.version import VERSION
from testkit.worker import ROOT
from tests.programs import required

KUBERNETES: Final = ROOT / "docker" / "kubernetes"
SCHEMAS: Final = Path(__file__).parent / "schemas"
# The oldest version that is still served, and the newest that there are schemas of.
VERSIONS: Final = ("1.34", "1.37")
COMPANY: Final = "CompanyHelm01"

Node = dict[str, Any]
OF_THE_CLUSTER: Final = ("deployment", "service", "poddisruptionbudget")
OF_OPERATORS: Final = ("servicemonitor", "scaledobject")


def manifest(name: str) -> Node:
    """A manifest by its file's name; each file holds one."""
    (path,) = KUBERNETES.glob(f"*/{name}.yaml")
    content: Node = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def kustomization(folder: str) -> Node:
    """What a folder is made of."""
    content: Node = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    return content


def generated() -> dict[str, str]:
    """The variables of the generated ConfigMap."""
    (made,) = kustomization("base")["configMapGenerator"]
    return dict(line.split("=", 1) for line in made["literals"])


def pod() -> Node:
    """What the Deployment makes pods of."""
    template: Node = manifest("deployment")["spec"]["template"]
    return template


def container() -> Node:
    """The pod's only container."""
    (only,) = pod()["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def query() -> str:
    """What KEDA asks Prometheus."""
    (trigger,) = manifest("scaledobject")["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def fits(content: Node) -> None:
    """Fail unless it fits the schema of its kind: that of an operator, or Kubernetes' own of both versions."""
    kind = content["kind"].lower()
    if kind in OF_OPERATORS:
        schema = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
        checker = validator_for(schema)
        checker.check_schema(schema)
        assert [error.message for error in checker(schema).iter_errors(content)] == []
        return
    for version in VERSIONS:
        kubernetes_validate.validate(content, version, strict=True)


@pytest.mark.parametrize("name", [*OF_THE_CLUSTER, *OF_OPERATORS, "namespace"])
def test_manifest_fits_the_schema_of_its_kind(name: str) -> None:
    fits(manifest(name))


def test_schema_sees_a_misspelt_key() -> None:
    content = manifest("deployment")
    content["spec"]["template"]["spec"]["terminationGracePeriod"] = 35
    with pytest.raises(kubernetes_validate.ValidationError):
        fits(content)


def test_each_file_belongs_to_its_folder() -> None:
    for folder, names in (("base", OF_THE_CLUSTER), ("scaled", OF_OPERATORS)):
        files = {f"{name}.yaml" for name in names}
        assert {path.name for path in (KUBERNETES / folder).iterdir()} == files | {"kustomization.yaml"}
        listed = set(kustomization(folder)["resources"]) - {"../base"}
        assert listed == files
    assert "../base" in kustomization("scaled")["resources"]


def test_scaled_deployment_leaves_the_number_to_keda() -> None:
    (patch,) = kustomization("scaled")["patches"]
    assert patch["target"] == {"kind": "Deployment", "name": manifest("deployment")["metadata"]["name"]}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert manifest("deployment")["spec"]["replicas"] == manifest("scaledobject")["spec"]["minReplicaCount"]


def test_selectors_find_the_pods_and_the_service() -> None:
    labels = pod()["metadata"]["labels"].items()
    assert manifest("deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert manifest("service")["spec"]["selector"].items() <= labels
    assert manifest("poddisruptionbudget")["spec"]["selector"]["matchLabels"].items() <= labels
    watched = manifest("servicemonitor")["spec"]["selector"]["matchLabels"]
    assert watched.items() <= manifest("service")["metadata"]["labels"].items()
    assert (
        manifest("scaledobject")["spec"]["scaleTargetRef"]["name"]
        == manifest("deployment")["metadata"]["name"]
    )


def test_metrics_are_read_at_the_port_that_the_worker_opens() -> None:
    (port,) = container()["ports"]
    (offered,) = manifest("service")["spec"]["ports"]
    (endpoint,) = manifest("servicemonitor")["spec"]["endpoints"]
    assert endpoint["port"] == offered["name"]
    assert endpoint["path"] == "/metrics"
    assert offered["targetPort"] == port["name"]
    given = {each["name"]: each.get("value") for each in container()["env"]}
    assert int(given["SERVER_PORT"]) == offered["port"] == port["containerPort"] == 8080


def test_probes_are_the_documented_ones() -> None:
    liveness, readiness = container()["livenessProbe"], container()["readinessProbe"]
    expected = {"timeoutSeconds": 5, "failureThreshold": 3}
    live, ready = {"path": "/health", "port": "http"}, {"path": "/ready", "port": "http"}
    assert liveness == {"httpGet": live, "initialDelaySeconds": 15, "periodSeconds": 20, **expected}
    assert readiness == {"httpGet": ready, "initialDelaySeconds": 5, "periodSeconds": 10, **expected}


def test_dsn_comes_from_the_secret_and_is_written_nowhere() -> None:
    dsn = next(each for each in container()["env"] if each["name"] == "POSTGRES_DSN")
    reference = {"name": "daisi-wa-events-processor-secret", "key": "POSTGRES_DSN"}
    assert dsn == {"name": "POSTGRES_DSN", "valueFrom": {"secretKeyRef": reference}}
    assert "POSTGRES_DSN" not in generated()
    assert not [
        path for path in KUBERNETES.rglob("*.yaml") if "postgres://" in path.read_text(encoding="utf-8")
    ]


def test_variables_are_known_and_accepted() -> None:
    given = {**generated(), **{each["name"]: each.get("value") for each in container()["env"]}}
    assert set(given) <= {variable.name for variable in variables()}
    settings = Settings.from_env({**given, "POSTGRES_DSN": "postgres://of-the-secret/none"})
    assert [tenant.company for tenant in settings.tenants] == [COMPANY]
    assert settings.nats_servers == ("nats://nats:4222",)
    assert container()["envFrom"] == [{"configMapRef": {"name": "daisi-wa-events-processor"}}]
    assert kustomization("base")["configMapGenerator"][0]["name"] == "daisi-wa-events-processor"


def test_image_is_this_version_and_names_no_registry() -> None:
    (image,) = kustomization("base")["images"]
    assert image == {"name": container()["image"], "newTag": VERSION}
    assert not re.search(r"[.:/]", container()["image"])


def test_pod_has_time_to_drain() -> None:
    """The whole stop ends within STOP_TIMEOUT (docs/operations.md, Stopping); the count begins before the signal."""
    given = {**generated(), "COMPANY_ID": "Kopi", "POSTGRES_DSN": "postgres://of-the-secret/none"}
    stop_timeout = Settings.from_env(given).stop_timeout
    assert pod()["spec"]["terminationGracePeriodSeconds"] >= stop_timeout + 5


def test_pod_has_no_privilege_and_writes_only_to_tmp() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (user,) = set(re.findall(r"^USER (\d+):\1$", dockerfile, re.M))
    whole, own = pod()["spec"]["securityContext"], container()["securityContext"]
    assert whole["runAsNonRoot"]
    assert (whole["runAsUser"], whole["runAsGroup"]) == (int(user), int(user))
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert pod()["spec"]["automountServiceAccountToken"] is False
    assert [mount["mountPath"] for mount in container()["volumeMounts"]] == ["/tmp"]


def test_names_of_other_services_do_not_become_settings() -> None:
    """Kubernetes would set METRICS_PORT=tcp://... for a Service named `metrics`."""
    assert pod()["spec"]["enableServiceLinks"] is False


def test_resources_are_asked_for_and_limited() -> None:
    resources = container()["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


def test_missing_metric_never_scales_up() -> None:
    """An empty answer is an error, and an error keeps the replicas, two at least."""
    spec = manifest("scaledobject")["spec"]
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    # KEDA has a fallback for this type only.
    assert trigger["metricType"] == "AverageValue"
    assert spec["fallback"]["replicas"] == spec["minReplicaCount"] < spec["maxReplicaCount"]
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_lag_is_that_of_the_namespace_with_all_its_companies() -> None:
    exposed = b"".join(asyncio.run(Metrics([COMPANY], jid_limit=0, version=VERSION).page())).decode()
    metrics = set(re.findall(r"\bdaisi_\w+", query()))
    assert metrics == {"daisi_consumer_pending_messages", "daisi_consumer_unacknowledged_messages"}
    assert all(f"# TYPE {name} gauge" in exposed for name in metrics)
    namespaces = re.findall(r'namespace="([^"]*)"', query())
    assert namespaces == [kustomization("scaled")["namespace"]] * len(metrics)
    assert "company_id=" not in query()


@pytest.mark.parametrize(
    ("series", "lag"),
    [
        pytest.param({"realtime": (3000, 500), "historical": (20, 1)}, 7042, id="pending and unacknowledged"),
        pytest.param({"realtime": (0, 0), "historical": (0, 0), "dlq": (900, 9)}, 0, id="no dead letters"),
        pytest.param({}, None, id="nothing known"),
    ],
)
def test_lag_is_counted_once_however_many_replicas_tell_it(
    series: dict[str, tuple[int, int]], lag: int | None, tmp_path: Path
) -> None:
    """Two companies in the namespace, and one elsewhere; evaluated by Prometheus's own tool."""
    names = ("daisi_consumer_pending_messages", "daisi_consumer_unacknowledged_messages")
    namespace = kustomization("scaled")["namespace"]
    told = [
        {
            "series": f'{name}{{{where},consumer_type="{consumer}",instance="{replica}"}}',
            "values": f"{value}x10",
        }
        for where in (
            f'namespace="{namespace}",company_id="{COMPANY}"',
            f'namespace="{namespace}",company_id="CompanyHelm02"',
            'namespace="of-others",company_id="Others"',
        )
        for replica in range(3)
        for consumer, values in series.items()
        for name, value in zip(names, values, strict=True)
    ]
    answer = [] if lag is None else [{"labels": "{}", "value": lag}]
    expected = {"expr": query(), "eval_time": "1m", "exp_samples": answer}
    content = {"tests": [{"interval": "15s", "input_series": told, "promql_expr_test": [expected]}]}
    file = tmp_path / "lag.yml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [required("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
