"""`python -m tests.containers`: build the images, run both compose files for real, and leave nothing behind.

Uses the Docker engine that answers, else one of its own in namespaces that vanish with it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.containers import base_images, sandbox, story
from tests.containers.debian import CACHE
from tests.containers.engine import Engine, EngineError, own
from tests.containers.stack import Unmet

_INSIDE: Final = "inside"
_BEGAN: Final = time.monotonic()


def main(arguments: list[str]) -> int:
    """The exit status: 0 if all is as it must be, 1 if not, 2 where it cannot be found out."""
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if arguments == [_INSIDE]:
            work = sandbox.enter()
            return _check(own(work), work)
        foreign = Engine()
        if foreign.answers():
            if not foreign.has_compose():
                _say("this engine has no Compose v2 (`docker compose`)")
                return 2
            CACHE.mkdir(exist_ok=True)
            return _check(foreign, CACHE)
        if lacks := sandbox.missing():
            _say(f"no engine answers, and there are not: {', '.join(lacks)}")
            return 2
        return sandbox.run("tests.containers", [_INSIDE])
    except KeyboardInterrupt:
        return 130


def _check(engine: Engine, work: Path) -> int:
    try:
        real = base_images.provide(engine, work)
        _say(f"base images are {'the real ones' if real else 'stand-ins or were there'}")
        story.development(engine, _say)
        story.Story(engine, work, _say).run()
    except (Unmet, EngineError, subprocess.SubprocessError) as error:
        _say(f"FAILED: {error}")
        return 1
    _say("all is as it must be")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"[{time.monotonic() - _BEGAN:4.0f} s] {text}\n")
    sys.stdout.flush()


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
