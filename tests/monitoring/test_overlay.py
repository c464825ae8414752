"""The example of an overlay, rendered by the real kustomize: nothing of the base is left that it has to change."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from streams.config.settings import Settings
from streams.version import VERSION
from tests.containers.debian import KUSTOMIZE
from tests.monitoring.test_kubernetes import KUBERNETES, Node, fits, generated, kustomization, query
from tests.programs import required

# Of base and scaled: company, NATS of the same namespace, namespace, image without a registry.
OF_THE_BASE: Final = (
    r"CompanyHelm01",
    r"nats://nats:4222",
    r"\bdefault\b",
    r"image: daisi-wa-events-processor\b",
)
NAMESPACE: Final = "company-bbb02"
NAME: Final = "daisi-wa-events-processor"


@pytest.fixture(scope="session")
def kustomize() -> str:
    """kustomize of the path, else the one that `make system-deps` downloads."""
    return shutil.which("kustomize") or (str(KUSTOMIZE) if KUSTOMIZE.exists() else required("kustomize"))


def rendered(kustomize: str, folder: Path) -> str:
    """What `kubectl apply --kustomize` would send."""
    done = subprocess.run(
        [kustomize, "build", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def left(text: str) -> list[str]:
    """What of the base's own values is still there."""
    return [value for value in OF_THE_BASE if re.search(value, text)]


def by_kind(text: str) -> dict[str, Node]:
    """The manifests; there is one of each kind."""
    found = list(yaml.safe_load_all(text))
    kinds = {each["kind"]: each for each in found}
    assert len(kinds) == len(found)
    return kinds


def lag(manifests: dict[str, Node]) -> str:
    """What KEDA asks Prometheus."""
    (trigger,) = manifests["ScaledObject"]["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def test_scaled_has_the_values_that_are_looked_for(kustomize: str) -> None:
    """Else nobody would see what an overlay leaves of them."""
    assert left(rendered(kustomize, KUBERNETES / "scaled")) == list(OF_THE_BASE)
    assert generated()["COMPANY_ID"] == OF_THE_BASE[0]
    assert generated()["NATS_URL"] == OF_THE_BASE[1]
    assert re.fullmatch(OF_THE_BASE[2], kustomization("scaled")["namespace"])


def test_overlay_leaves_nothing_of_the_base_that_it_has_to_change(kustomize: str) -> None:
    text = rendered(kustomize, KUBERNETES / "overlay")
    assert left(text) == []
    manifests = by_kind(text)
    assert len(manifests) == 7
    for content in manifests.values():
        fits(content)
    namespace = manifests.pop("Namespace")["metadata"]
    assert namespace["name"] == NAMESPACE == kustomization("overlay")["namespace"]
    assert {each["metadata"].get("namespace") for each in manifests.values()} == {NAMESPACE}
    settings = Settings.from_env({**manifests["ConfigMap"]["data"], "POSTGRES_DSN": "postgres://secret/none"})
    assert [tenant.company for tenant in settings.tenants] == ["CompanyBBB02"]
    (container,) = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"your-registry/{NAME}:{VERSION}"
    # The generated name follows the settings, so that a change of them rolls the pods.
    assert container["envFrom"] == [{"configMapRef": {"name": manifests["ConfigMap"]["metadata"]["name"]}}]
    assert "replicas" not in manifests["Deployment"]["spec"]
    assert lag(manifests) == query().replace('namespace="default"', f'namespace="{NAMESPACE}"')


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of all of it, to be changed."""
    return shutil.copytree(KUBERNETES, tmp_path / "kubernetes") / "overlay"


def change(file: Path, old: str, new: str) -> None:
    """Replace a text that is there."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_query_follows_the_namespace_of_a_copied_overlay_by_itself(kustomize: str, copied: Path) -> None:
    """Of its kustomization only, with several companies: kustomize names the Namespace after it, too."""
    change(copied / "kustomization.yaml", f"namespace: {NAMESPACE}", "namespace: team-7")
    change(copied / "kustomization.yaml", "COMPANY_ID=CompanyBBB02", "COMPANY_ID=CompanyBBB02,CompanyCCC03")
    text = rendered(kustomize, copied)
    assert left(text) == []
    assert NAMESPACE not in text
    manifests = by_kind(text)
    assert manifests["Namespace"]["metadata"]["name"] == "team-7"
    assert lag(manifests) == query().replace('namespace="default"', 'namespace="team-7"')
    settings = Settings.from_env({**manifests["ConfigMap"]["data"], "POSTGRES_DSN": "postgres://secret/none"})
    assert [tenant.company for tenant in settings.tenants] == ["CompanyBBB02", "CompanyCCC03"]


@pytest.mark.parametrize(
    ("old", "new", "shows"),
    [
        pytest.param("index: 5", "index: 1", OF_THE_BASE[2], id="half of the query"),
        pytest.param("- COMPANY_ID=", "- COMPANY_IDS=", OF_THE_BASE[0], id="company"),
        pytest.param("- NATS_URL=", "- NATS_URLS=", OF_THE_BASE[1], id="NATS"),
        pytest.param("newName: your-registry/", "newName: ", OF_THE_BASE[3], id="image"),
    ],
)
def test_what_an_overlay_forgets_is_seen(
    kustomize: str, copied: Path, old: str, new: str, shows: str
) -> None:
    change(copied / "kustomization.yaml", old, new)
    assert left(rendered(kustomize, copied)) == [shows]


def test_overlay_without_keda_is_the_base_without_replacements(kustomize: str, copied: Path) -> None:
    file = copied / "kustomization.yaml"
    change(file, "../scaled", "../base")
    file.write_text(file.read_text(encoding="utf-8").partition("\nreplacements:")[0], encoding="utf-8")
    text = rendered(kustomize, copied)
    assert left(text) == []
    assert set(by_kind(text)) == {"Namespace", "ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
