"""The load test's stack as users start it, under load and through crashes: nothing is lost, and nobody is called."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from typing import Final

from testkit.accounting import EXHAUSTED, Report
from tests.containers.accounting import account
from tests.containers.engine import EngineError
from tests.containers.load_test import (
    ABSENT,
    COMPANIES,
    DSN,
    NATS,
    NOTICED,
    REPLICAS,
    SERVICES,
    LoadTest,
)
from tests.containers.stack import Labels, Unmet, eventually

SECONDS: Final = 40
# Up to the ack wait of what a killed worker had in its hands, and the retries of what was refused.
_SETTLED: Final = 90.0
# Longer than this part is.
_ALL: Final = 900.0


def starts(test: LoadTest) -> None:
    """Every replica is healthy and ready, writes nowhere, and is a target that is up."""
    test.stack.compose("up", "--build", "--detach", "--wait", "--wait-timeout", "150", *SERVICES)
    test.stack.compose("build", "loadgen")
    for service in COMPANIES:
        replicas = test.stack.containers(service)
        if len(replicas) != REPLICAS:
            raise Unmet(f"{service} has {len(replicas)} replicas")
        for container in replicas:
            _is_sound(test, container)
    test.has_targets(REPLICAS, REPLICAS)


def _is_sound(test: LoadTest, container: str) -> None:
    found = test.stack.inspected(container)
    if found["State"]["Health"]["Status"] != "healthy":
        raise Unmet(f"{found['Name']} is {found['State']['Health']}")
    # The image's own health check, which the compose files' takes the place of; also where SERVER_PORT is not set.
    own = test.stack.inspected(found["Image"])["Config"]["Healthcheck"]["Test"]
    for setting in ("SERVER_PORT=8080", "SERVER_PORT="):
        test.stack.engine.docker("exec", "--env", setting, container, "sh", "-c", own[-1])
    ready = ("exec", container, "curl", "-sS", "--fail", "http://127.0.0.1:8080/ready")
    eventually(f"{found['Name']} is ready", NOTICED, partial(_does, test, *ready), True)
    if _does(test, "exec", "--user", "0", container, "touch", "/app/written"):
        raise Unmet(f"{found['Name']} can write to its root")


def _does(test: LoadTest, *arguments: str) -> bool:
    try:
        test.stack.engine.docker(*arguments)
    except EngineError:
        return False
    return True


def goes_on_under_load(test: LoadTest) -> None:
    """A replica is killed, replicas come and go, NATS and PostgreSQL are restarted: Prometheus finds all again."""
    load = test.load(f"{SECONDS}s", ",".join(COMPANIES.values()))
    eventually("events are stored", NOTICED, lambda: _stored(test) > 0, True)
    # Not by the engine, which restarts no container that it was told to kill.
    crashed = test.stack.containers("tenant_app_A")[0]
    os.kill(test.stack.inspected(crashed)["State"]["Pid"], signal.SIGKILL)
    test.scaled(5, REPLICAS)
    test.has_targets(5, REPLICAS)
    test.stack.compose("restart", "nats")
    test.stack.compose("restart", "postgres")
    test.scaled(1, REPLICAS)
    test.has_targets(1, REPLICAS)
    said, _ = load.communicate(timeout=4 * SECONDS)
    # Some events may be unconfirmed: NATS was away.
    if "confirmed" not in said:
        raise Unmet(f"the load generator says\n{said[-2000:]}")


def _stored(test: LoadTest) -> float:
    return sum(value for _, value in test.watch.query("sum(message_event_service_events_processed_total)"))


def is_accounted_for(test: LoadTest) -> None:
    """Every event of the streams has one final place, and until now nobody was called."""
    for company in COMPANIES.values():
        eventually(f"{company} has nothing to do", _SETTLED, partial(_lag, test, company), 0)
    given_up = set()
    for company, (report, events) in asyncio.run(_accounts()).items():
        if not report.ok or not events:
            raise Unmet(f"{company}: not all of {events} events are accounted for\n{report.text()}")
        test.say(f"{company}: {events} events, each has one final place")
        if any(counts[EXHAUSTED] for counts in report.counts.values()):
            given_up.add(company)
    if wrong := [labels for labels in test.watch.firing(over=_ALL) if not _may_fire(labels, given_up)]:
        raise Unmet(f"alerts that should not fire: {wrong}")


async def _accounts() -> dict[str, tuple[Report, int]]:
    companies = list(COMPANIES.values())
    found = await asyncio.gather(*(account(NATS, DSN, company) for company in companies))
    return dict(zip(companies, found, strict=True))


def _may_fire(labels: Labels, given_up: set[str]) -> bool:
    """The exporter of NATS has no stand-in.

    While NATS was away it may not have got an event whose update came later: that one is given up, says the account.
    """
    of_events = labels["alertname"] in {"ExhaustedEvents", "DlqTasksDropped"}
    return labels.get("job") == ABSENT or (of_events and labels["company_id"] in given_up)


def _lag(test: LoadTest, company: str) -> float:
    metrics = ("daisi_consumer_pending_messages", "daisi_consumer_unacknowledged_messages")
    expression = " + ".join(
        f'sum(max by (consumer_type) ({name}{{company_id="{company}"}}))' for name in metrics
    )
    return sum(value for _, value in test.watch.query(expression))
