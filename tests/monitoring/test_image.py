"""The image, without Docker: the steps of its Dockerfile are run in a local folder."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Final

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from streams.config.settings import variables
from streams.version import VERSION
from testkit.servers import free_port
from testkit.worker import ROOT, START, STOP, environment

DOCKERFILE: Final = ROOT / "docker" / "Dockerfile"
# A process of its own kind: first of its processes, nothing writable, no capability, no way to get one.
_CONTAINED: Final = (
    *("unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"),
    *("sh", "-ec", 'mount --make-rprivate /; mount -o remount,bind,ro /; exec "$@"', "sh"),
    *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
)
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root, unshare and setpriv",
)


@dataclass
class Stage:
    """One part of the Dockerfile: its base, and its instructions in order."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The arguments of every instruction of this name."""
        return [argument for instruction, argument in self.instructions if instruction == name]

    def command(self, name: str) -> list[str]:
        """The words of an instruction in exec form; fails for the shell form."""
        words: list[str] = json.loads(self.all(name)[-1])
        return words

    def environment(self) -> dict[str, str]:
        """What its ENV lines set."""
        return dict(word.split("=", 1) for line in self.all("ENV") for word in shlex.split(line))

    def copied(self) -> list[str]:
        """What it takes from the build context."""
        lines = [line.split() for line in self.all("COPY") if not line.startswith("--from")]
        return [source for *sources, _ in lines for source in sources]


def stages() -> dict[str, Stage]:
    """The Dockerfile's stages by name; a stage begins with all that its base stage has."""
    lines = [
        line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if line[:1] not in {"#", ""}
    ]
    found: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, argument = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = argument.split()
            inherited = found[base] if base in found else Stage(base)
            found[name] = Stage(inherited.base, list(inherited.instructions))
        elif found:
            found[name].instructions.append((instruction, argument))
    return found


@dataclass(frozen=True)
class Image:
    """The image's two folders, at other places than in the image."""

    packages: Path
    code: Path

    def placed(self, text: str) -> str:
        """A text of the Dockerfile with the places that hold here."""
        return text.replace("/opt/venv", str(self.packages)).replace("/app", str(self.code))

    def environment(self, stage: Stage, **settings: str) -> dict[str, str]:
        """What a container starts with, and what its operator sets."""
        own = {name: self.placed(value) for name, value in stage.environment().items()}
        own["PATH"] = own["PATH"].replace("$PATH", os.environ["PATH"])
        return {**own, **settings}

    def run(self, stage: Stage, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A command in the folder of the code, to its end."""
        env = self.environment(stage, **settings)
        program = shutil.which(words[0], path=env["PATH"])
        assert program, f"the image has no {words[0]}"
        return subprocess.run(
            [program, *words[1:]],
            cwd=self.code,
            env=env,
            capture_output=True,
            text=True,
            timeout=START,
            check=False,
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the Dockerfile's own commands install, and the code that it copies."""
    folder = tmp_path_factory.mktemp("image")
    made = Image(folder / "packages", folder / "code")
    stage, build, programs = stages()["packages"], folder / "build", folder / "bin"
    for name in (build, programs, made.code):
        name.mkdir()
    # The image's `python`; here it is the one that runs the tests, whatever it is called.
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    for source in stage.copied():
        shutil.copy(ROOT / source, build)
    env = {**os.environ, **stage.environment(), "PATH": f"{programs}:{os.environ['PATH']}"}
    # There is no layer to keep small here.
    del env["PIP_NO_CACHE_DIR"]
    for command in stage.all("RUN"):
        subprocess.run(["sh", "-ec", made.placed(command)], cwd=build, env=env, check=True)
    for source in stages()["loadgen"].copied():
        shutil.copytree(ROOT / source, made.code / source, ignore=shutil.ignore_patterns("__pycache__"))
    return made


@contextmanager
def started(
    image: Image, *before: str, options: Sequence[str] = (), **settings: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The image's entry command, after the words of `before` and with options; ends with the block."""
    stage = stages()["worker"]
    words = [*before, *stage.command("ENTRYPOINT"), *stage.command("CMD"), *options]
    process = subprocess.Popen(words, cwd=image.code, env=image.environment(stage, **settings))
    try:
        yield process
    finally:
        # With `unshare` its child ends with it.
        process.kill()
        process.wait()


def settings(company: str, nats_url: str, postgres_dsn: str) -> dict[str, str]:
    """What an operator gives to a container."""
    given = environment([company], nats_url, postgres_dsn, SERVER_PORT=str(free_port()))
    return {name: given[name] for name in ("NATS_URL", "POSTGRES_DSN", "COMPANY_ID", "SERVER_PORT")}


def healthy(image: Image, worker: int, **settings: str) -> bool:
    """What the image's own health check says, with the process of this id in place of the container's first one."""
    check = stages()["worker"].all("HEALTHCHECK")[0].split(" CMD ", 1)[1]
    assert check.count("/proc/1/") == 1
    check = check.replace("/proc/1/", f"/proc/{worker}/")
    return image.run(stages()["worker"], "sh", "-c", check, **settings).returncode == 0


def worker_of(process: subprocess.Popen[bytes]) -> int:
    """The process id of the worker: the process itself, or the one that `unshare` made."""
    inner = psutil.Process(process.pid).children()
    return inner[0].pid if inner else process.pid


def comes_up(
    image: Image, process: subprocess.Popen[bytes], *, port: str | None = None, **settings: str
) -> None:
    """Return when /ready says so, on the port of the settings unless another is given, and the health check, too."""
    url = f"http://127.0.0.1:{port or settings['SERVER_PORT']}/ready"
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            assert healthy(image, worker_of(process), **settings)
            return
        time.sleep(0.1)
    pytest.fail(f"the worker did not come up: {process.poll()}")


def test_image_is_slim_debian_with_what_workers_need() -> None:
    """Not Alpine; CA certificates, tzdata, wget, curl; 8080; production."""
    worker = stages()["worker"]
    python = DOCKERFILE.read_text(encoding="utf-8").split("ARG PYTHON=")[1].split()[0]
    assert worker.base == "python:${PYTHON}"
    assert python.endswith("-slim-bookworm")
    assert {"ca-certificates", "tzdata", "wget", "curl"} <= set(worker.all("RUN")[0].split())
    assert worker.all("EXPOSE") == ["8080"]
    assert worker.environment()["ENVIRONMENT"] == "production"
    assert worker.all("STOPSIGNAL") == ["SIGTERM"]
    assert list(stages())[-1] == "worker", "what is built unless another target is named"


def test_image_runs_as_a_numbered_user_that_owns_no_code() -> None:
    worker = stages()["worker"]
    user, _, group = worker.all("USER")[-1].partition(":")
    assert int(user) >= 10000
    assert int(group) >= 10000
    assert not [line for line in worker.all("COPY") if "--chown" in line]


def test_entry_is_the_worker_in_exec_form() -> None:
    """A shell between would keep SIGTERM to itself."""
    worker = stages()["worker"]
    words = [*worker.command("ENTRYPOINT"), *worker.command("CMD")]
    assert words == ["env", "--block-signal=TERM", "faust", "-A", "streams.app", "worker"]


def test_image_sets_only_known_variables_of_ours() -> None:
    known = {name for variable in variables() for name in (variable.name, *variable.aliases)}
    of_python = {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
    assert set(stages()["worker"].environment()) - of_python <= known


def test_build_context_holds_what_is_copied_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {line[1:] for line in rules if line.startswith("!")}
    assert allowed == {source for stage in stages().values() for source in stage.copied()}
    assert "**/__pycache__" in rules
    assert all((ROOT / name).exists() for name in allowed)


def test_image_holds_the_dependencies_and_no_developers_tools(image: Image) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (site,) = image.packages.glob("lib/python*/site-packages")
    installed = {
        canonicalize_name(found.metadata["Name"]) for found in metadata.distributions(path=[str(site)])
    }
    runtime = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    tools = {canonicalize_name(Requirement(line).name) for line in project["optional-dependencies"]["dev"]}
    assert runtime | {"uvloop"} <= installed
    assert not installed & {"pip", "setuptools", canonicalize_name(project["name"])}
    # What the runtime needs too is no tool.
    assert installed & tools <= {"packaging"}


def test_image_holds_the_pinned_versions(image: Image) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin.specifier for pin in map(Requirement, lines)}
    (site,) = image.packages.glob("lib/python*/site-packages")
    for found in metadata.distributions(path=[str(site)]):
        assert found.version in pins[canonicalize_name(found.metadata["Name"])]


@pytest.mark.parametrize(
    "given", [{}, settings("CompanyAAA01", "nats://127.0.0.1", "postgres://127.0.0.1/none")]
)
def test_commands_run_in_the_image(image: Image, given: dict[str, str]) -> None:
    """`docker run <image> version`: the entry takes Faust's other commands too, this one also without settings."""
    worker = stages()["worker"]
    done = image.run(worker, *worker.command("ENTRYPOINT"), "version", LOG_LEVEL="warn", **given)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{VERSION}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["worker", "--help"], ["migrate", "--help"]], ids=" ".join)
def test_help_needs_no_settings(image: Image, words: list[str]) -> None:
    worker = stages()["worker"]
    done = image.run(worker, *worker.command("ENTRYPOINT"), *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage:" in done.stdout
    if words == ["--help"]:
        assert all(name in done.stdout for name in ("worker", "migrate", "exhausted-replay"))


@pytest.mark.parametrize("word", ["worker", "migrate", "agents"])
def test_whatever_needs_settings_names_those_that_are_missing(image: Image, word: str) -> None:
    worker = stages()["worker"]
    done = image.run(worker, *worker.command("ENTRYPOINT"), word)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("wrong settings: ")
    assert "POSTGRES_DSN is not set" in line
    assert "COMPANY_ID is not set" in line


def test_image_lists_what_is_in_it(image: Image) -> None:
    """Debian's packages, Python and its packages, each with its version."""
    worker = stages()["worker"]
    done = image.run(worker, "sh", "-ec", worker.all("RUN")[-1])
    assert (done.returncode, done.stderr) == (0, "")
    lines = [
        line.split("\t") for line in (image.code / "packages.txt").read_text(encoding="utf-8").splitlines()
    ]
    listed = {kind: {name: version for each, name, version in lines if each == kind} for kind, _, _ in lines}
    assert set(listed) == {"deb", "python", "pypi"}
    assert listed["python"] == {"python": platform.python_version()}
    (site,) = image.packages.glob("lib/python*/site-packages")
    installed = {found.name: found.version for found in metadata.distributions(path=[str(site)])}
    assert installed.items() <= listed["pypi"].items()
    asked = ("dpkg-query", "--show", "--showformat", "${Version}", "libc6")
    assert listed["deb"]["libc6"] == subprocess.run(asked, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["worker", "loadgen"])
def test_image_says_what_it_is(name: str) -> None:
    """As annotations of the Open Container Initiative; where its source is, is said by whoever builds it."""
    stage = stages()[name]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(word.split("=", 1) for line in stage.all("LABEL") for word in shlex.split(line))
    said = {label.removeprefix("org.opencontainers.image."): text for label, text in labels.items()}
    assert set(said) == {"title", "description", "version", "licenses", "source", "revision"}
    assert (said["version"], said["licenses"]) == (VERSION, project["license"])
    assert (said["source"], said["revision"]) == ("${SOURCE}", "${REVISION}")
    assert stage.all("ARG") == ['SOURCE=""', 'REVISION=""']
    if name == "worker":
        assert (said["title"], said["description"]) == (project["name"], project["description"])


def test_load_generator_needs_no_developers_tools(image: Image) -> None:
    loadgen = stages()["loadgen"]
    done = image.run(loadgen, *loadgen.command("ENTRYPOINT"), "--help")
    assert done.returncode == 0, done.stderr


def test_entry_answers_the_health_check_and_stops_in_order(
    image: Image, company: str, nats_url: str, postgres_dsn: str
) -> None:
    given = settings(company, nats_url, postgres_dsn)
    assert not healthy(image, os.getpid(), **given)
    with started(image, **given) as worker:
        comes_up(image, worker, **given)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(STOP) == 0


def test_health_check_asks_the_port_that_a_worker_without_settings_has() -> None:
    worker = stages()["worker"]
    (port,) = re.findall(r"\$\{SERVER_PORT:-(\d+)\}", worker.all("HEALTHCHECK")[0])
    (default,) = [variable.default for variable in variables() if variable.name == "SERVER_PORT"]
    assert [port] == worker.all("EXPOSE") == [default]


@pytest.mark.parametrize("option", ["--web-port {}", "--web-port={}", "-p {}", "-p{}"])
def test_health_check_asks_the_port_of_the_option(image: Image, option: str) -> None:
    """`docker run ... <image> worker --web-port 8081`: it wins over SERVER_PORT, as in the worker."""
    port = free_port()
    words = [
        *stages()["worker"].command("ENTRYPOINT"),
        "worker",
        *option.format(port).split(),
        "--loglevel=info",
    ]
    # A first process that names these words, and a server: what the worker does with them is tested below.
    with (
        subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE) as first,
        HTTPServer(("127.0.0.1", port), _Healthy) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert healthy(image, first.pid, SERVER_PORT=str(free_port()))
        assert not healthy(image, os.getpid(), SERVER_PORT=str(free_port()))
        server.shutdown()
        first.kill()


def test_worker_with_another_port_is_healthy(
    image: Image, company: str, nats_url: str, postgres_dsn: str
) -> None:
    given, port = settings(company, nats_url, postgres_dsn), str(free_port())
    with started(image, options=["--web-port", port], **given) as worker:
        comes_up(image, worker, port=port, **given)


@pytest.fixture
def silent_dsn() -> Iterator[str]:
    """A PostgreSQL that says nothing: a refusal would end `migrate`, an answer would let it make tables."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"postgres://postgres@127.0.0.1:{server.getsockname()[1]}/none"


@needs_namespaces
@pytest.mark.parametrize("words", [["worker"], ["migrate"]], ids=" ".join)
@pytest.mark.parametrize("delay", [0, 0.2, 0.6])
def test_stop_while_python_starts_is_heard_by_a_first_process(
    image: Image, company: str, nats_url: str, silent_dsn: str, delay: float, words: list[str]
) -> None:
    """Without an init: the kernel drops a signal that a first process has no handler for."""
    entry = stages()["worker"].command("ENTRYPOINT")
    with subprocess.Popen(
        [*_CONTAINED, *entry, *words],
        cwd=image.code,
        env=image.environment(stages()["worker"], **settings(company, nats_url, silent_dsn)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as outer:
        try:
            inner = _first_process(outer)
            time.sleep(delay)
            inner.send_signal(signal.SIGTERM)
            assert outer.wait(STOP) in (0, 128 + signal.SIGTERM)
        finally:
            outer.kill()


def _first_process(outer: subprocess.Popen[bytes]) -> psutil.Process:
    """The first process of the namespaces, once it is Python."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        for inner in psutil.Process(outer.pid).children():
            with suppress(psutil.Error, IndexError):
                if Path(inner.cmdline()[0]).name.startswith("python"):
                    return inner
        time.sleep(0.001)
    pytest.fail("the first process did not start")


class _Healthy(BaseHTTPRequestHandler):
    """Answers 200 on /health."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@needs_namespaces
def test_worker_is_content_as_first_process_with_nothing_writable_and_no_privilege(
    image: Image, company: str, nats_url: str, postgres_dsn: str
) -> None:
    """As in a container with a read-only root: PID 1 gets no signal that it does not ask for."""
    given = settings(company, nats_url, postgres_dsn)
    with started(image, *_CONTAINED, **given) as outer:
        comes_up(image, outer, **given)
        (worker,) = psutil.Process(outer.pid).children()
        assert "streams.app" in worker.cmdline()
        worker.send_signal(signal.SIGTERM)
        assert outer.wait(STOP) == 0
