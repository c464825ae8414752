"""`python -m tests.containers`: build the images, run both compose files for real, and leave nothing behind.

Uses the Docker engine that answers, else one of its own in namespaces that vanish with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.containers import base_images, machine, sandbox, story
from tests.containers.debian import CACHE
from tests.containers.engine import Engine, EngineError
from tests.containers.stack import Unmet

NOT_HERE: Final = 2
_BEGAN: Final = time.monotonic()


def main(arguments: list[str]) -> int:
    """The exit status: 0 if all is as it must be, 1 if not, `NOT_HERE` where it cannot be found out."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)
    sandbox.end_with_parent(signal.SIGTERM)
    CACHE.mkdir(exist_ok=True)
    try:
        if options.inside:
            return _in_own(sandbox.enter(), options.render)
        foreign = Engine()
        if foreign.answers():
            return _in_foreign(foreign, options.render)
        if missing := machine.programs():
            _lacks(missing)
            # As the tests: what `make system-deps` installs must be there in CI.
            return 1 if os.environ.get("CI") else NOT_HERE
        if lacks := machine.lacks():
            return _lacks(lacks)
        return sandbox.run("tests.containers", ["--inside", *arguments])
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m tests.containers", description=__doc__)
    parser.add_argument(
        "--render", type=Path, metavar="FOLDER", help="write a picture of each dashboard into this folder"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def _in_own(work: Path, pictures: Path | None) -> int:
    try:
        engine = base_images.seeded(work)
    except base_images.Unavailable as error:
        return _not_here(str(error))
    except (EngineError, subprocess.CalledProcessError) as error:
        return _failed(error)
    _say("the engine has all that it needs")
    return _check(engine, work, pictures)


def _in_foreign(engine: Engine, pictures: Path | None) -> int:
    if not engine.has_compose():
        return _lacks(["Compose v2 (`docker compose`) for the engine that answers"])
    made: list[str] = []
    with tempfile.TemporaryDirectory(prefix="containers-") as work:
        try:
            made = base_images.provide(engine, Path(work))
            return _check(engine, Path(work), pictures)
        except (EngineError, subprocess.CalledProcessError) as error:
            return _failed(error)
        finally:
            if made:
                engine.docker("image", "rm", *made)


def _check(engine: Engine, work: Path, pictures: Path | None) -> int:
    try:
        story.run(engine, work, _say, pictures)
    except (Unmet, EngineError, subprocess.SubprocessError) as error:
        return _failed(error)
    _say("all is as it must be")
    return 0


def _failed(error: Exception) -> int:
    _say(f"FAILED: {error}")
    return 1


def _lacks(what: Sequence[str]) -> int:
    return _not_here(f"there is not {', '.join(what)}")


def _not_here(reason: str) -> int:
    _say(f"containers were not tried: {reason}")
    return NOT_HERE


def _say(text: str) -> None:
    sys.stdout.write(f"[{time.monotonic() - _BEGAN:4.0f} s] {text}\n")
    sys.stdout.flush()


def _interrupted(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
