"""Whoever starts servers and a worker may be killed at any moment: nothing of them stays behind."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from testkit.worker import ROOT

# Starts what is named, and is killed between the fork and the exec. The child goes on when the guard has cleared up.
_OWNER = """
import os, signal, subprocess, sys, time
from pathlib import Path
from testkit.server import Server
from testkit.worker import Worker

pid_file, log, what = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
owner, popen = os.getpid(), subprocess.Popen

def orphaned():
    pid_file.write_text(f"{os.getpid()}\\n")
    os.kill(owner, signal.SIGKILL)
    while os.getppid() == owner:
        time.sleep(0.001)
    os.closerange(3, 256)  # the guard's input is one of them
    while what == "server" and sleeper._folder.exists():
        time.sleep(0.001)

class Sleeper(Server):
    name, stop_signal = "sleeper", signal.SIGTERM

    def _configure(self):
        # The guard is there already.
        subprocess.Popen = lambda *args, **options: popen(*args, **options, preexec_fn=orphaned)

    def _arguments(self):
        return [sys.executable, "-c", "import time; time.sleep(600)", str(self._folder)]

if what == "server":
    sleeper = Sleeper()
    sleeper.start()
subprocess.Popen = lambda *args, **options: popen(*args, **options, preexec_fn=orphaned)
Worker(["KopiNusa01"], nats_url="nats://127.0.0.1:1", postgres_dsn="postgresql://127.0.0.1:1/x", log=log).start()
"""


@pytest.mark.parametrize("what", ["server", "worker"])
def test_owner_killed_before_the_child_is_a_program_of_its_own_leaves_nothing(
    tmp_path: Path, what: str
) -> None:
    told = tmp_path / "pid"
    subprocess.run(
        [sys.executable, "-c", _OWNER, str(told), str(tmp_path / "worker.log"), what], cwd=ROOT, check=False
    )
    deadline = time.monotonic() + 60
    # `sleep` and a worker without servers would go on without end.
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(told.read_text(encoding="ascii")))
        while child.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                child.kill()
                pytest.fail("the child goes on")
            time.sleep(0.01)
