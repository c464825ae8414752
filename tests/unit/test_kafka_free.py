"""The worker is Faust without Kafka: none of its services is Kafka's, and no broker is ever looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In a process of its own: making the app sets the policy of event loops, and logging.
SCRIPT = """
import asyncio
import streams.app

app = streams.app.app
asyncio.set_event_loop(asyncio.new_event_loop())
for service in app.boot_strategy.server():
    print(type(service).__module__, type(service).__qualname__)
"""


def test_no_service_of_the_worker_is_kafkas() -> None:
    """So there is no group to rebalance and no broker to wait for."""
    environ = {"COMPANY_ID": "KopiNusa", "POSTGRES_DSN": "postgres://nobody@127.0.0.1:1/wa"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    services = done.stdout.splitlines()
    assert "streams.jetstream.broker Broker" in services
    assert "streams.monitoring.http Web" in services
    for service in services:
        assert not service.startswith(("faust.transport", "faust.tables", "aiokafka")), services
        assert "kafka" not in service.lower(), services
