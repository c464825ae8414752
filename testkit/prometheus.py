"""A real Prometheus, the system's, as one more embedded server: the demo's watcher, and the tests'."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from testkit.server import Server

# Without jobs.yml, which is about the jobs of the top folder's prometheus.yml.
RULES: Final = tuple(
    Path(__file__).resolve().parent.parent / "docker" / "prometheus" / "rules" / name
    for name in ("recording.yml", "alerts.yml")
)


class Prometheus(Server):
    """Scrapes `jobs` (targets by job name) every `interval`, and evaluates the rules of `rules` as often."""

    name = "prometheus"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        program: str,
        jobs: Mapping[str, Sequence[str]],
        rules: Sequence[Path] = (),
        *,
        interval: str,
        port: int = 0,
    ) -> None:
        super().__init__()
        self.port = port
        self._program = program
        self._jobs = jobs
        self._rules = rules
        self._interval = interval

    @property
    def url(self) -> str:
        """Where its pages and its HTTP API are."""
        return f"http://127.0.0.1:{self.port}"

    def _arguments(self) -> list[str]:
        return [
            self._program,
            f"--config.file={self._folder / 'prometheus.json'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]

    def _configure(self) -> None:
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": list(targets)}]}
            for job, targets in self._jobs.items()
        ]
        intervals = ("scrape_interval", "scrape_timeout", "evaluation_interval")
        config = {
            "global": dict.fromkeys(intervals, self._interval),
            "rule_files": [str(path) for path in self._rules],
            "scrape_configs": scrapes,
        }
        # JSON is YAML.
        (self._folder / "prometheus.json").write_text(json.dumps(config), encoding="utf-8")

    def _ready(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=1).close()
        except OSError:
            return False
        return super()._ready()
