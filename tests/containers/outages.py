"""Outages of the load test's stack: each is told once, and resolves. The rules are faster here."""

from __future__ import annotations

from typing import Final

from tests.containers import faster_rules
from tests.containers.load_test import COMPANIES, NOTICED, LoadTest, exhaust
from tests.containers.stack import Unmet, eventually

_A: Final = COMPANIES["tenant_app_A"]
_B: Final = COMPANIES["tenant_app_B"]
_EVERY: Final = [{"severity": "critical", "company_id": company} for company in COMPANIES.values()]
# Longer than all of it.
_ALL: Final = 900.0


def of_servers(test: LoadTest) -> None:
    """PostgreSQL is away, then NATS; in the end events that cannot be stored come."""
    test.hurry()
    for server, alert in (("postgres", "PostgresUnavailable"), ("nats", "NatsUnavailable")):
        test.stack.compose("stop", server)
        test.fires(alert, _EVERY)
        test.stack.compose("start", server)
        test.fires(alert, [])


def of_events(test: LoadTest) -> None:
    """Events that can never be stored are given up: the newest is told, with its company."""
    load = test.load("5s", _A, "--invalid", "0.2")
    expected = ("ExhaustedEvents", "warning", _A)

    def told() -> bool:
        # Another company may have given up one while NATS was away.
        firing = test.watch.firing("ExhaustedEvents")
        return expected in {(one["alertname"], one.get("severity"), one.get("company_id")) for one in firing}

    eventually(str(expected), NOTICED, told, True)
    load.communicate(timeout=NOTICED)


def of_a_company(test: LoadTest) -> None:
    """A company without workers is one page; a new replica does not disagree with those that have left."""
    before, departed = _exhausted(test), test.stack.addresses("tenant_app_B")
    test.stack.compose("stop", "tenant_app_B")
    test.fires("CompanyWithoutWorker", [{"severity": "critical", "company_id": _B}])
    exhaust(_B, like=_A)
    # Prometheus tells replicas by their addresses.
    test.stack.compose("stop", "spare")
    test.stack.compose("up", "--detach", "--no-build", "--scale", "tenant_app_B=1", "tenant_app_B")
    if both := departed & test.stack.addresses("tenant_app_B"):
        raise Unmet(f"the new replica has the address of one that has left, which proves nothing: {both}")
    test.fires("CompanyWithoutWorker", [])
    eventually("exhausted events", NOTICED, lambda: _exhausted(test), before + 1)
    # It is ripe when a rule that knows nothing of departed replicas fires.
    eventually(
        faster_rules.CONTROL, NOTICED, lambda: bool(test.watch.firing(faster_rules.CONTROL, over=_ALL)), True
    )
    for alert in ("ReplicasDisagree", "JobWithoutTargets"):
        if fired := test.watch.firing(alert, over=_ALL):
            raise Unmet(f"alerts that should not fire: {fired}")


def _exhausted(test: LoadTest) -> float:
    """How many rows the replicas see; below 0 as long as none does."""
    found = test.watch.query(f'max by (company_id) (daisi_exhausted_events{{company_id="{_B}"}})')
    return found[0][1] if found else -1.0
