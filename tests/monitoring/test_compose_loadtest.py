"""The compose file of the load test: two companies, load, and monitoring."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Final

import pytest
import yaml

from streams.config.settings import variables
from testkit.worker import ROOT
from tests.monitoring.composed import DOCKER, LOADTEST, Node, mounts, services
from tests.programs import required

PROMETHEUS: Final = "/etc/prometheus/prometheus.yml"


def options(service: Node) -> dict[str, str]:
    """Its command's `--name=value` words."""
    return dict(word.split("=", 1) for word in service["command"] if "=" in word)


def test_load_test_has_two_companies_of_three_replicas_without_fixed_ports() -> None:
    for service in ("tenant_app_A", "tenant_app_B"):
        worker = services(LOADTEST)[service]
        assert worker["deploy"]["replicas"] == 3
        assert "ports" not in worker
        assert "container_name" not in worker


def test_load_test_publishes_the_ports_of_the_guide() -> None:
    published = {
        service: [port.split(":")[1] for port in content.get("ports", [])]
        for service, content in services(LOADTEST).items()
    }
    assert published["prometheus"] == ["9090"]
    assert published["alertmanager"] == ["9093"]
    assert published["grafana"] == ["3000"]
    assert published["nats_exporter"] == ["7777"]


def test_load_generator_knows_its_options() -> None:
    service = services(LOADTEST)["loadgen"]
    words = service["entrypoint"]
    assert words[:2] == ["python", "-m"]
    shown = subprocess.run(
        [sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    used = {word for word in service["command"] if word.startswith("--")}
    assert used <= set(re.findall(r"--[a-z-]+", shown))
    assert set(service["environment"]) <= {variable.name for variable in variables()}
    companies = [
        services(LOADTEST)[name]["environment"]["COMPANY_ID"] for name in ("tenant_app_A", "tenant_app_B")
    ]
    assert ",".join(companies) in service["command"]


@pytest.mark.parametrize(
    ("service", "debian"), [("prometheus", "prometheus"), ("alertmanager", "prometheus-alertmanager")]
)
def test_options_of_prometheus_and_alertmanager_exist(service: str, debian: str) -> None:
    """Of Debian's versions, which are those of the image or older."""
    asked = subprocess.run(
        [shutil.which(service) or required(debian), "--help"], capture_output=True, text=True, check=False
    )
    used = options(services(LOADTEST)[service])
    assert set(used) <= set(re.findall(r"--[a-z.-]+", asked.stdout + asked.stderr))
    assert used["--config.file"] in {target for _, target, _ in mounts(services(LOADTEST)[service])}


def test_prometheus_finds_its_rules_where_they_are_mounted() -> None:
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text(encoding="utf-8"))
    places = {target: DOCKER / source for source, target, _ in mounts(services(LOADTEST)["prometheus"])}
    assert places[PROMETHEUS].resolve() == ROOT / "prometheus.yml"
    for pattern in config["rule_files"]:
        folder, _, files = f"/etc/prometheus/{pattern}".rpartition("/")
        assert list(places[folder].glob(files)), pattern


def test_prometheus_watches_services_of_this_file() -> None:
    """Each target is a service here, on a port that it offers."""
    config = yaml.safe_load((ROOT / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = [*config["scrape_configs"], *config["alerting"]["alertmanagers"]]
    fixed = [each for job in jobs for part in job.get("static_configs", []) for each in part["targets"]]
    found = [
        f"{each}:{part['port']}"
        for job in jobs
        for part in job.get("dns_sd_configs", [])
        for each in part["names"]
    ]
    assert found
    for target in [*fixed, *found]:
        host, _, port = target.partition(":")
        service = services(LOADTEST)["prometheus" if host == "localhost" else host]
        ports = [*service.get("expose", []), *(each.split(":")[2] for each in service.get("ports", []))]
        assert port in ports, target


def test_grafana_is_provisioned_where_it_looks() -> None:
    places = {target: source for source, target, _ in mounts(services(LOADTEST)["grafana"])}
    assert places["/etc/grafana/provisioning"] == "../grafana/provisioning"
    provider = (ROOT / "grafana/provisioning/dashboards/provider.yml").read_text(encoding="utf-8")
    (path,) = {each["options"]["path"] for each in yaml.safe_load(provider)["providers"]}
    assert places[path] == "../grafana/dashboards"
    source = (ROOT / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    assert [each["url"] for each in yaml.safe_load(source)["datasources"]] == ["http://prometheus:9090"]
