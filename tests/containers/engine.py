"""The Docker engine that the check uses: somebody else's if one answers, else one of our own in the sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO, Final

from tests.containers import debian

_PATIENCE: Final = 30.0


class EngineError(RuntimeError):
    """The engine does not start, or a command of it fails; the message has its own words."""


class Engine:
    """Runs commands of `docker`. `environment`: which engine, and where Compose v2 is."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = {**os.environ, **(environment or {})}

    def answers(self) -> bool:
        """Whether an engine answers."""
        return shutil.which("docker") is not None and self._run("version").returncode == 0

    def has_compose(self) -> bool:
        """Whether Compose v2 is there; v1 refuses the files."""
        return self._run("compose", "version").returncode == 0

    def docker(self, *arguments: str | Path, stdin: str = "", within: float = 600.0) -> str:
        """What a command prints. Raises `EngineError`."""
        done = self._run(*arguments, stdin=stdin, within=within)
        if done.returncode != 0:
            said = (done.stderr + done.stdout)[-3000:]
            raise EngineError(f"docker {' '.join(map(str, arguments))} ended with {done.returncode}:\n{said}")
        return done.stdout

    def imported(self, archive: IO[bytes], name: str) -> None:
        """Make an image of a packed root folder. Raises `CalledProcessError`."""
        command = ["docker", "import", "--change", 'CMD ["python3"]', "-", name]
        subprocess.run(command, env=self._environment, stdin=archive, check=True, stdout=subprocess.DEVNULL)

    def started(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """A command that goes on by itself."""
        return subprocess.Popen(
            ["docker", *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _run(
        self, *arguments: str | Path, stdin: str = "", within: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *arguments],
            env=self._environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )


def own(work: Path) -> Engine:
    """Start an engine whose files are in `work`; it ends with the sandbox. Raises `EngineError`."""
    host = f"unix://{work / 'docker.sock'}"
    config = work / "config" / "cli-plugins"
    config.mkdir(parents=True)
    debian.provide()
    (config / "docker-compose").symlink_to(debian.COMPOSE)
    log = work / "dockerd.log"
    options: dict[str, str | Path] = {
        "--host": host,
        "--data-root": work / "data",
        "--exec-root": work / "exec",
        "--pidfile": work / "dockerd.pid",
        "--storage-driver": "overlay2",
    }
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            ["dockerd", *(part for option in options.items() for part in option)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    # The classic builder: the newer one needs a plugin that Debian 12 has not.
    engine = Engine({"DOCKER_HOST": host, "DOCKER_CONFIG": str(config.parent), "DOCKER_BUILDKIT": "0"})
    deadline = time.monotonic() + _PATIENCE
    while not engine.answers():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise EngineError(f"dockerd does not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)
    return engine
