"""Writes batches whatever PostgreSQL does: bisects a batch to isolate poison events; waits out outages."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from agents.circuit_breaker import CircuitBreaker
from agents.outage_probe import OutageProbe
from events.backoff import Backoff
from tables.errors import QueryTimeout, SerializationFailure, StorageError, Unavailable

# A sub-batch that runs into a time limit this often may be to blame itself.
TIMEOUTS: Final = 3
# Nobody is in the way this often: the "stale plan" (0A000) is then a feature that the server does not have.
CONTENTIONS: Final = 10

Item = TypeVar("Item")
Taken = TypeVar("Taken", contravariant=True)
Sleep = Callable[[float], Awaitable[None]]
WhileWaiting = Callable[[], AbstractAsyncContextManager[None]]


class Health(Protocol):
    """Told who waits for the database and why, and when that is over."""

    def paused(self, waiter: str, reason: str) -> None:
        """`waiter` waits for this reason."""
        ...

    def resumed(self, waiter: str) -> None:
        """`waiter` goes on."""
        ...


class Sink(Protocol[Taken]):
    """Where items are written, and what becomes of those that cannot be."""

    @property
    def company(self) -> str:
        """Whose items they are."""
        ...

    async def write(self, items: Sequence[Taken]) -> bool:
        """Write all or nothing; whether any item was stored. Raises `StorageError`."""
        ...

    async def probe(self, item: Taken) -> None:
        """Return if the database stores a test row of the kind of `item`. Raises `StorageError`."""
        ...

    def kind(self, item: Taken) -> Hashable:
        """What a probe for `item` says something about."""
        ...

    def event(self, item: Taken) -> Hashable:
        """The event that `item` is of; None if it must not count for the breaker."""
        ...

    def blame(self, item: Taken, error: Exception) -> None:
        """`item` is not stored, by its own fault."""
        ...


@dataclass(slots=True)
class SubBatch(Generic[Item]):
    """Items that are written in one transaction, and what has happened to them."""

    items: Sequence[Item]
    timeouts: int = 0
    contentions: int = 0
    put_off: bool = False

    @property
    def alone(self) -> bool:
        """Whether there is nobody else to blame."""
        return len(self.items) == 1

    def bisect(self) -> list[SubBatch[Item]]:
        """Both halves, the second first: sub-batches are taken from the end."""
        middle = len(self.items) // 2
        return [SubBatch(self.items[middle:]), SubBatch(self.items[:middle])]


class BatchWriter:
    """Stores items or blames them; an outage is waited out, and blames nobody.

    An item is blamed by evidence: a probe of its kind was stored after the item was refused. The breaker limits how
    fast different events of a company are blamed while none is stored.
    """

    def __init__(
        self,
        name: str,
        health: Health,
        *,
        backoff: Callable[[], Backoff] = Backoff,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """`name` and the company are what `health` is told of; `clock` and `sleep` are in seconds."""
        self._name = name
        self._health = health
        self.backoff = backoff
        self.sleep = sleep
        self._clock = clock
        self._judges: dict[str, tuple[OutageProbe, CircuitBreaker]] = {}
        self._waiting: Counter[str] = Counter()

    async def store(
        self, items: Sequence[Item], sink: Sink[Item], *, while_waiting: WhileWaiting = nullcontext
    ) -> None:
        """Write all items, in order; returns when each one is stored or blamed.

        Waits for as long as the database cannot be used; `while_waiting()` is entered for each wait.
        """
        if items:
            await _Run(self, items, sink, f"{self._name} {sink.company}", while_waiting).finish()

    def paused(self, waiter: str, reason: str, *, again: bool) -> None:
        """A batch of `waiter` waits; `again`: as it did before, and has not gone on."""
        self._waiting[waiter] += not again
        self._health.paused(waiter, reason)

    def resumed(self, waiter: str) -> None:
        """A batch goes on. Others of the same waiter may still wait: real-time and history, or replays."""
        self._waiting[waiter] -= 1
        if not self._waiting[waiter]:
            del self._waiting[waiter]
            self._health.resumed(waiter)

    def judges(self, company: str) -> tuple[OutageProbe, CircuitBreaker]:
        """What decides about the events of a company."""
        if company not in self._judges:
            self._judges[company] = OutageProbe(self._clock), CircuitBreaker(self._clock)
        return self._judges[company]


class _Run(Generic[Item]):
    """One batch on its way through a `BatchWriter`."""

    def __init__(
        self,
        writer: BatchWriter,
        items: Sequence[Item],
        sink: Sink[Item],
        waiter: str,
        while_waiting: WhileWaiting,
    ) -> None:
        self._while_waiting = while_waiting
        self._writer = writer
        self._sink = sink
        self._waiter = waiter
        self._evidence, self._breaker = writer.judges(sink.company)
        self._pending = [SubBatch(items)]
        self._backoff = writer.backoff()
        self._paused = False

    async def finish(self) -> None:
        """Write until nothing is left."""
        try:
            while self._pending:
                await self._step(self._pending.pop())
        finally:
            self._resume()

    async def _step(self, batch: SubBatch[Item]) -> None:
        try:
            stored = await self._sink.write(batch.items)
        except Unavailable as error:
            await self._wait_for_database(batch, str(error))
        except QueryTimeout as error:
            await self._timed_out(batch, error)
        except SerializationFailure as error:
            await self._on_serialization_failure(batch, error)
        except Exception as error:
            if batch.alone:
                await self._judge(batch, error)
            else:
                self._pending.extend(batch.bisect())
        else:
            self._backoff = self._writer.backoff()
            self._resume()
            if stored:
                self._breaker.stored()

    async def _timed_out(self, batch: SubBatch[Item], error: QueryTimeout) -> None:
        batch.timeouts += 1
        if batch.timeouts < TIMEOUTS:
            await self._wait_for_database(batch, str(error))
        else:
            await self._judge(batch, error)

    async def _on_serialization_failure(self, batch: SubBatch[Item], error: SerializationFailure) -> None:
        batch.contentions += 1
        if batch.contentions > CONTENTIONS:
            return await self._judge(batch, error)
        self._pending.append(batch)
        if batch.contentions > 1:
            await self._backoff.wait()

    async def _judge(self, batch: SubBatch[Item], error: StorageError | Exception) -> None:
        """Find out whether the database is to blame; if not, bisect, or blame the item that is alone."""
        item = batch.items[0]
        probe = partial(self._sink.probe, item)
        if reason := await self._evidence.outage(self._sink.kind(item), probe, error):
            await self._wait_for_database(batch, reason)
        elif not batch.alone:
            self._pending.extend(batch.bisect())
        else:
            await self._blame(batch, item, error)

    async def _blame(self, batch: SubBatch[Item], item: Item, error: Exception) -> None:
        event = self._sink.event(item)
        pause = 0.0 if event is None else self._breaker.wait(event)
        if pause == 0.0:
            if event is not None:
                self._breaker.blamed(event, str(error) or type(error).__name__)
            self._sink.blame(item, error)
        elif self._pending and not batch.put_off:
            # One of the others may be stored, which closes the breaker.
            batch.put_off = True
            self._pending.insert(0, batch)
        else:
            self._pending.append(batch)
            self._pause(self._breaker.reason)
            async with self._while_waiting():
                await self._writer.sleep(pause)

    async def _wait_for_database(self, batch: SubBatch[Item], reason: str) -> None:
        self._pending.append(batch)
        self._pause(reason)
        async with self._while_waiting():
            await self._backoff.wait()

    def _pause(self, reason: str) -> None:
        self._writer.paused(self._waiter, reason, again=self._paused)
        self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._writer.resumed(self._waiter)
