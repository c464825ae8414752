"""The Docker engine that the check uses: somebody else's if one answers, else one of our own in the sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final

from tests.containers import debian, sandbox

_PATIENCE: Final = 60.0
_UNTIL_STOPPED: Final = 30.0


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
        try:
            done = self._run(*arguments, stdin=stdin, within=within)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{_words(arguments)} has not ended within {within:g} s") from error
        if done.returncode != 0:
            said = (done.stdout + done.stderr)[-3000:]
            raise EngineError(f"{_words(arguments)} ended with {done.returncode}:\n{said}")
        return done.stdout

    def imported(self, archive: IO[bytes], name: str) -> None:
        """Make an image of a packed root folder. Raises `CalledProcessError`."""
        command = ["docker", "import", "--change", 'CMD ["python3"]', "-", name]
        subprocess.run(command, env=self._environment, stdin=archive, check=True, stdout=subprocess.DEVNULL)

    def images(self) -> set[str]:
        """The names of its images, as `name:tag`."""
        return set(self.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split())

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


class Daemon:
    """An engine of our own, whose files are in `work`; it ends with the sandbox at the latest."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Engine:
        """Start it. Raises `EngineError`, with its last words."""
        host = f"unix://{self._work / 'docker.sock'}"
        config = self._compose()
        log = self._work / "dockerd.log"
        options: dict[str, str | Path] = {
            "--host": host,
            "--data-root": self._work / "data",
            "--exec-root": self._work / "exec",
            "--pidfile": self._work / "dockerd.pid",
            "--storage-driver": "overlay2",
            "--cgroup-parent": sandbox.cgroup(),
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                ["dockerd", *(part for option in options.items() for part in option)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        # The classic builder: the newer one needs a plugin that Debian 12 has not.
        engine = Engine({"DOCKER_HOST": host, "DOCKER_CONFIG": str(config), "DOCKER_BUILDKIT": "0"})
        deadline = time.monotonic() + _PATIENCE
        while not engine.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"dockerd does not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        return engine

    def stop(self) -> None:
        """Stop it in order, so that its files are whole."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_UNTIL_STOPPED)

    def _compose(self) -> Path:
        """The folder of the client's configuration, with Compose v2 as its plugin."""
        config = self._work / "config"
        if not config.exists():
            debian.provide()
            (config / "cli-plugins").mkdir(parents=True)
            (config / "cli-plugins" / "docker-compose").symlink_to(debian.COMPOSE)
        return config


def _words(arguments: Sequence[str | Path]) -> str:
    return f"docker {' '.join(map(str, arguments))}"
