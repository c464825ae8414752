"""The compose files, without Docker: they fit the specification, and everything they name exists."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from jsonschema.validators import validator_for

from streams.config.settings import Settings, variables
from testkit.binaries import nats_server
from testkit.servers import PostgresServer, free_port
from testkit.worker import ROOT
from tests.monitoring.composed import DEV, DOCKER, LOADTEST, Node, compose, mounts, services

# (file, service): those that run the worker's image.
WORKERS: Final = ((DEV, "worker"), (LOADTEST, "tenant_app_A"), (LOADTEST, "tenant_app_B"))
both = pytest.mark.parametrize("name", [DEV, LOADTEST])
workers = pytest.mark.parametrize(("name", "service"), WORKERS)


def problems(content: Node) -> list[str]:
    """What the specification's own schema says against it."""
    vendored = resources.files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    schema = json.loads(vendored.read_text(encoding="utf-8"))
    return [
        f"{error.json_path}: {error.message}" for error in validator_for(schema)(schema).iter_errors(content)
    ]


def seconds(text: str) -> float:
    """A duration such as `30s`; these files use no other unit."""
    assert text.endswith("s")
    return float(text[:-1])


@both
def test_file_fits_the_compose_specification(name: str) -> None:
    assert problems(compose(name)) == []


def test_schema_sees_a_misspelt_key() -> None:
    content = compose(DEV)
    content["services"]["nats"]["health_check"] = {}
    assert problems(content)


@both
def test_paths_that_are_mounted_exist(name: str) -> None:
    for service in services(name).values():
        for source, _, mode in mounts(service):
            if source.startswith("."):
                assert (DOCKER / source).resolve().exists(), source
                assert mode == "ro", source


@both
def test_named_volumes_are_declared_and_used(name: str) -> None:
    sources = {source for service in services(name).values() for source, _, _ in mounts(service)}
    assert {source for source in sources if not source.startswith(".")} == set(compose(name)["volumes"])


@both
def test_what_is_waited_for_tells_whether_it_is_healthy(name: str) -> None:
    found = services(name)
    for service in found.values():
        for other, wait in service.get("depends_on", {}).items():
            assert wait == {"condition": "service_healthy"}
            assert "healthcheck" in found[other]


@both
def test_images_name_a_version_and_no_registry(name: str) -> None:
    for service in services(name).values():
        path, _, tag = service["image"].partition(":")
        assert tag not in {"", "latest"}
        assert not re.search(r"[.:]", path.split("/")[0])


@both
def test_shell_variables_have_defaults(name: str) -> None:
    """Only Grafana's log-in is meant to be given from outside (the guide's "unless changed")."""
    text = (DOCKER / name).read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{?[A-Za-z_]+[^}\s]*\}?", text))
    expected = {"${GF_SECURITY_ADMIN_USER:-admin}", "${GF_SECURITY_ADMIN_PASSWORD:-asdfqwer}"}
    assert used == (expected if name == LOADTEST else set())


@both
def test_host_ports_are_open_to_this_machine_only_and_each_once(name: str) -> None:
    published = [port.split(":") for service in services(name).values() for port in service.get("ports", [])]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert len({port for _, port, _ in published}) == len(published)


@workers
def test_variables_of_a_worker_are_known_and_accepted(name: str, service: str) -> None:
    given = services(name)[service]["environment"]
    assert set(given) <= {each for variable in variables() for each in (variable.name, *variable.aliases)}
    settings = Settings.from_env(given)
    assert settings.server_port == 8080
    assert settings.nats_servers == ("nats://nats:4222",)
    expected = {"worker": "company_dev", "tenant_app_A": "CompanyAAA01", "tenant_app_B": "CompanyBBB02"}
    assert [tenant.company for tenant in settings.tenants] == [expected[service]]
    database = services(name)["postgres"]["environment"]["POSTGRES_DB"]
    assert settings.postgres_dsn == f"postgres://postgres:postgres@postgres:5432/{database}"


@workers
def test_worker_has_time_to_drain_and_writes_nowhere(name: str, service: str) -> None:
    worker = services(name)[service]
    stop_timeout = Settings.from_env(worker["environment"]).stop_timeout
    assert seconds(worker["stop_grace_period"]) > stop_timeout + 1
    assert worker["read_only"]
    assert worker["cap_drop"] == ["ALL"]
    assert worker["restart"] == "unless-stopped"


@workers
def test_worker_is_checked_as_documented(name: str, service: str) -> None:
    check = services(name)[service]["healthcheck"]
    assert check["test"][:2] == ["CMD", "curl"]
    assert check["test"][-1] == "http://127.0.0.1:8080/health"
    numbers = (check["interval"], check["timeout"], check["retries"], check["start_period"])
    assert numbers == ("10s", "5s", 3, "10s")


@both
def test_services_of_ours_can_be_started_alone(name: str) -> None:
    """Our images are in no registry: each service builds its own; under tags of their own, two do not collide."""
    stages = re.findall(r"^FROM .* AS (\w+)$", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.M)
    ours = [each for each in services(name).values() if each["image"].startswith("daisi-")]
    assert len(ours) >= 1
    for service in ours:
        assert service["pull_policy"] == "build"
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["build"]["target"] in stages
    assert len({service["image"] for service in ours}) == len(ours)
    assert not [each for each in services(name).values() if "build" in each and each not in ours]


@pytest.mark.parametrize(
    ("name", "database", "port"),
    [(DEV, "message_service", 54321), (LOADTEST, "message_service_loadtest", 54322)],
)
def test_servers_are_the_documented_ones(name: str, database: str, port: int) -> None:
    nats, postgres = services(name)["nats"], services(name)["postgres"]
    assert nats["image"] == "nats:2.11-alpine"
    assert {each.split(":")[2] for each in nats["ports"]} == {"4222", "6222", "8222"}
    assert nats["healthcheck"]["interval"] == "5s"
    assert nats["healthcheck"]["test"][-1].endswith(":8222/healthz")
    assert postgres["image"] == "postgres:17-bookworm"
    assert postgres["environment"]["POSTGRES_DB"] == database
    assert postgres["ports"] == [f"127.0.0.1:{port}:5432"]


@both
def test_nats_starts_with_its_command(name: str, tmp_path: Path) -> None:
    """The real server, with other ports and another folder."""
    port = free_port()
    given = [
        word.replace("=/data", f"={tmp_path}").replace("=8222", f"={port}")
        for word in services(name)["nats"]["command"]
    ]
    with subprocess.Popen([nats_server(), *given, "--addr=127.0.0.1", f"--port={free_port()}"]) as server:
        try:
            deadline = time.monotonic() + 30
            while server.poll() is None and time.monotonic() < deadline:
                with suppress(OSError):
                    # Answers 200 only when JetStream, which our command asks for, has come up.
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/jsz", timeout=5) as answer:
                        assert json.load(answer)["config"]["store_dir"].startswith(str(tmp_path))
                    return
                time.sleep(0.05)
            pytest.fail(f"NATS did not start: {server.poll()}")
        finally:
            server.terminate()


@both
async def test_postgres_takes_its_settings(name: str) -> None:
    words = services(name)["postgres"]["command"]
    assert words[0] == "postgres"
    assert set(words[1::2]) == {"-c"}
    given = dict(word.split("=", 1) for word in words[2::2])
    assert given["wal_level"] == "logical"
    with PostgresServer(settings=given) as server:
        connection = await asyncpg.connect(server.dsn)
        try:
            assert {key: await connection.fetchval(f"SHOW {key}") for key in given} == given
        finally:
            await connection.close()
