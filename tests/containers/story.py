"""What the two compose files go through, and in which order."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from tests.containers import calm, outages, panels
from tests.containers.engine import Engine
from tests.containers.load_test import NOTICED, LoadTest, Say
from tests.containers.stack import DOCKER, Instead, Node, Stack, eventually

_DEVELOPMENT: Final = DOCKER / "docker-compose.yaml"
_CHAPTERS: Final[tuple[Callable[[LoadTest], None], ...]] = (
    calm.goes_on_under_load,
    calm.is_accounted_for,
    outages.of_servers,
    outages.of_events,
    outages.of_a_company,
    panels.are_shown,
)


def run(engine: Engine, work: Path, say: Say, pictures: Path | None) -> None:
    """All of it. Raises `Unmet`, or `EngineError` when a command of the engine fails.

    `pictures`: a folder for those of the dashboards.
    """
    test = LoadTest(engine, work, say)
    try:
        with ThreadPoolExecutor() as beside:
            _timed(calm.starts, test)
            development = beside.submit(develop, engine, work, say)
            for chapter in _CHAPTERS:
                _timed(chapter, test)
            if pictures:
                panels.draw(test, pictures)
            development.result()
    except Exception:
        say(test.stack.compose("ps", "--all") + test.stack.compose("logs", "--no-color", "--tail", "8"))
        raise
    finally:
        test.stack.down()


def develop(engine: Engine, work: Path, say: Say) -> None:
    """The compose file for a laptop: its worker becomes ready, and `down` leaves nothing. Raises `Unmet`."""
    # The load test's NATS has these ports; a busy machine may start a worker slowly.
    changes: Node = {"nats": {"ports": Instead()}, "worker": {"healthcheck": {"start_period": "60s"}}}
    images = {"worker": "daisi-wa-events-check:dev"}
    stack = Stack(engine, _DEVELOPMENT, "daisi-wa-events-check", images, work, changes)
    try:
        stack.compose("up", "--build", "--detach", "--wait", "--wait-timeout", "150")
        eventually("/ready", NOTICED, _ready, 200)
        say("the worker of one company is ready")
    finally:
        stack.down()


def _ready() -> int:
    with urllib.request.urlopen("http://127.0.0.1:8080/ready", timeout=5) as answer:
        return int(answer.status)


def _timed(chapter: Callable[[LoadTest], None], test: LoadTest) -> None:
    began = time.monotonic()
    chapter(test)
    name = f"{chapter.__module__.rpartition('.')[2]}: {chapter.__name__.replace('_', ' ')}"
    test.say(f"{name}, {time.monotonic() - began:.0f} s")
