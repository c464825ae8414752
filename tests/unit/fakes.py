"""What agents work with, kept in memory: deliveries, a publisher, tables, and a meter that remembers its calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from agents.retry_policy import RetryPolicy
from events.delivery import Batch, Delivery, MessageMetadata
from events.errors import BrokerError
from events.subjects import ConsumerType, Tenant
from tables.attribution import Incoming
from tables.exhausted import ExhaustedRow
from tables.last_writer_wins import Version
from tables.mutations import Mutation, WriteRejection
from tables.onboarding import Outcome, Pair
from tables.tenant import TenantTables
from tests import builders

TENANT = Tenant(builders.COMPANY)
STORED_NS = 1_795_500_200_000_000_000
LIMITS: dict[ConsumerType, RetryPolicy] = {
    "realtime": RetryPolicy(5, 1.0, 30.0),
    "historical": RetryPolicy(3, 2.0, 60.0),
    "dlq": RetryPolicy(10, 300.0, 300.0),
}


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses of an outage short."""
    monkeypatch.setattr("events.backoff.FIRST_PAUSE", 0.001)
    monkeypatch.setattr("events.backoff.LONGEST_PAUSE", 0.005)


async def until(condition: Callable[[], object]) -> None:
    """Wait for the condition, half a minute at most."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


class FakeDelivery:
    """A delivery that remembers how it was settled; `failures` calls fail first."""

    def __init__(
        self,
        event_type: str = "v1.messages.upsert",
        payload: Any = builders.ABSENT,
        *,
        num_delivered: int = 1,
        sequence: int = 7,
        subject: str | None = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        failures: int = 0,
    ) -> None:
        self.subject = TENANT.subject(event_type) if subject is None else subject
        if data is None:
            data = builders.body(builders.BUILDERS[event_type]() if payload is builders.ABSENT else payload)
        self.data = data
        self.headers = headers
        self.metadata = MessageMetadata(
            "wa_events_stream", "wa_realtime", "", sequence, 3, num_delivered, STORED_NS, 0
        )
        self.received = time.perf_counter()
        self.settlements: list[tuple[str, float]] = []
        self.failures = failures

    async def ack(self) -> None:
        self._settle("ack")

    async def nak(self, delay: float = 0.0) -> None:
        self._settle("nak", delay)

    async def term(self) -> None:
        self._settle("term")

    def _settle(self, how: str, delay: float = 0.0) -> None:
        if self.failures:
            self.failures -= 1
            raise BrokerError("not connected")
        self.settlements.append((how, delay))

    @property
    def outcome(self) -> str:
        """How it was settled; fails unless it was settled once."""
        [(how, _)] = self.settlements
        return how


def batch(*deliveries: Delivery, consumer_type: ConsumerType = "realtime") -> Batch:
    """One item of a channel."""
    return Batch(TENANT, consumer_type, deliveries)


async def stream(*batches: Batch) -> AsyncIterator[Batch]:
    """A channel that ends."""
    for item in batches:
        yield item


class FakePublisher:
    """A dead-letter stream that answers with `troubles` first, one a publish."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.letters: list[tuple[str, dict[str, Any], Mapping[str, str]]] = []
        self.attempts = 0

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.attempts += 1
        await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop(0)
        self.letters.append((subject, json.loads(body), headers))

    @property
    def envelope(self) -> dict[str, Any]:
        """The only envelope."""
        [(_, envelope, _)] = self.letters
        return envelope


class RecordingMeter:
    """Every verb of every meter; `calls` are its calls, times left out."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, verb: str) -> Callable[..., None]:
        def call(*values: Any, **named: Any) -> None:
            kept = [value for value in (*values, *named.values()) if not isinstance(value, float)]
            self.calls.append((verb, *kept))

        return call

    def of(self, *verbs: str) -> list[tuple[Any, ...]]:
        """The calls of some verbs, in order."""
        return [call for call in self.calls if call[0] in verbs]

    def count(self) -> Counter[str]:
        """How often each verb was called."""
        return Counter(call[0] for call in self.calls)


class FakeTables:
    """Tables that keep changes in a list.

    `troubles` are raised one a write, then `judge` may raise or refuse; `exhausted_troubles` are raised one a
    row of exhausted_events. A probe is stored, unless `probe_troubles` has an error left for it.
    """

    def __init__(
        self,
        *troubles: Exception,
        judge: Callable[[Sequence[Mutation]], Iterable[WriteRejection]] | None = None,
        exhausted_troubles: Iterable[Exception] = (),
        probe_troubles: Iterable[Exception] = (),
        onboarding_trouble: Exception | None = None,
    ) -> None:
        self.troubles = list(troubles)
        self.judge = judge
        self.exhausted_troubles = list(exhausted_troubles)
        self.probe_troubles = list(probe_troubles)
        self.onboarding_trouble = onboarding_trouble
        self.probes: list[object] = []
        self.writes: list[list[Mutation]] = []
        self.bulks: list[bool] = []
        self.rows: list[ExhaustedRow] = []

    async def write(self, changes: Sequence[Mutation], *, bulk: bool = False) -> list[WriteRejection]:
        await asyncio.sleep(0)
        if self.troubles:
            raise self.troubles.pop(0)
        refusals = list(self.judge(changes)) if self.judge else []
        self.writes.append(list(changes))
        self.bulks.append(bulk)
        return refusals

    @property
    def probe(self) -> FakeTables:
        return self

    @property
    def onboarding(self) -> FakeTables:
        return self

    async def store(self, like: object, company: str) -> None:
        self.probes.append(like)
        await asyncio.sleep(0)
        if self.probe_troubles:
            raise self.probe_troubles.pop(0)

    async def known(self, company: str, pairs: Iterable[Pair]) -> dict[Pair, Version | None]:
        return {}

    async def onboard(self, company: str, messages: Sequence[Incoming]) -> list[Outcome]:
        if self.onboarding_trouble is not None:
            raise self.onboarding_trouble
        return [Outcome(True, True) for _ in messages]

    @property
    def stored(self) -> list[Mutation]:
        """All changes that were written, in order."""
        return [change for write in self.writes for change in write]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield

    @property
    def exhausted(self) -> FakeTables:
        return self

    async def save(self, _: object, row: ExhaustedRow) -> bool:
        if self.exhausted_troubles:
            raise self.exhausted_troubles.pop(0)
        self.rows.append(row)
        return True

    @property
    def row(self) -> ExhaustedRow:
        """The only row of exhausted_events."""
        [row] = self.rows
        return row

    def of(self, _: Tenant) -> TenantTables:
        """What agents are given."""
        return cast(TenantTables, self)
