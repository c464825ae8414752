"""Known events at a steady rate, each confirmed by JetStream however long that takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import nats
from nats.js import JetStreamContext

from testkit.oracle import Published
from testkit.publisher import Confirmed, Ledger
from testkit.traffic import DECK, Publication, Traffic

WINDOW: Final = 32
_ANSWER: Final = 1.0
_AGAIN: Final = 0.05
_UNTIL_SEEN: Final = 20.0
# Events that are tried again by design: without them every other second delivery stands out.
RETRIED: Final = ("early", "orphan", "repeat")
# Updates that come before their rows: while nothing can be published for longer than they are tried, they become
# dead letters by design.
EARLY: Final = ("early",)
# Events that compare by a time of their own.
HISTORY: Final = ("history",)


class Era:
    """What was confirmed while one and the same streams stood, and what these made of it."""

    def __init__(self, js: JetStreamContext) -> None:
        self.confirmed: list[Confirmed] = []
        self._ledger = Ledger(js)

    async def read(self, company: str) -> bool:
        """Read the streams from their start; False if something confirmed is not in them."""
        await self._ledger.follow(company)
        deadline = time.monotonic() + _UNTIL_SEEN
        while self.unseen():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    def unseen(self) -> Sequence[Confirmed]:
        """Confirmed, but not found in the streams so far."""
        return self._ledger.unseen(self.confirmed)

    def published(self) -> list[Published]:
        """The events as they were stored."""
        return list(self._ledger.published(self.confirmed))

    async def close(self) -> None:
        """Stop reading."""
        await self._ledger.close()


class Load:
    """Publishes the traffic of a company, until `finish`.

    `without`: beginnings of the names of kinds (`testkit.traffic.DECK`) to leave out;
    `often`: kinds that come more often than there; then without updates that come early. Without these, what is about
    one row is published in order, however long a confirmation takes.
    """

    def __init__(
        self,
        js: JetStreamContext,
        company: str,
        *,
        seed: int,
        rate: float,
        without: tuple[str, ...] = (),
        often: Mapping[str, int] | None = None,
    ) -> None:
        self._js = js
        self._company = company
        self._traffic = Traffic(company, seed, start=int(time.time()))
        self._rng = random.Random(f"load {company} {seed}")
        self._pause = 1 / rate
        self._without = without or (EARLY if often else ())
        self._weights = {
            name: count
            for name, count in {**DECK, **(often or {})}.items()
            if not name.startswith(self._without or ("-",))
        }
        self._stopping = False
        self._at_once = 0
        self._going = asyncio.Event()
        self._going.set()
        self._window = asyncio.Semaphore(WINDOW)
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: dict[tuple[str, str], asyncio.Task[None]] = {}
        self.eras = [Era(js)]

    async def run(self) -> None:
        """Publish until `finish` is called, and then what early updates still wait for."""
        for publication in self._publications():
            await self._going.wait()
            await self._window.acquire()
            task = asyncio.create_task(self._confirm_in_turn(publication, self._earlier(publication)))
            self._latest.update(dict.fromkeys(_keys(publication), task))
            self._tasks.add(task)
            task.add_done_callback(self._confirmed)
            self._at_once -= 1
            await asyncio.sleep(0 if self._at_once > 0 else self._pause)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def burst(self, count: int) -> None:
        """Publish the next ones as fast as they are confirmed: batches grow then."""
        self._at_once = count

    def finish(self) -> None:
        """Let `run` come to its end."""
        self._stopping = True

    async def hold(self) -> None:
        """Publish nothing any more; returns when everything on the way is confirmed."""
        self._going.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def go_on(self) -> None:
        """The opposite of `hold`."""
        self._going.set()

    def begin_era(self) -> None:
        """A stream was deleted: what is confirmed from now on is in another one."""
        self.eras.append(Era(self._js))

    def messages(self) -> list[str]:
        """The ids of confirmed messages that must be stored, of this era."""
        return [
            item.key
            for one in self.eras[-1].confirmed
            for item in one.publication.items
            if one.publication.event_type == "v1.messages.upsert" and not item.refused
        ]

    def _publications(self) -> Iterator[Publication]:
        if self._without:
            yield from self._chosen()
            return
        for publication in self._traffic.events():
            if self._stopping:
                yield from (publication, *self._traffic.rest())
                return
            yield publication

    def _chosen(self) -> Iterator[Publication]:
        at = time.time()
        while not self._stopping:
            at += 0.1
            yield self._traffic.make(
                self._rng.choices(list(self._weights), list(self._weights.values()))[0], at=at
            )

    def _confirmed(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._window.release()

    def _earlier(self, publication: Publication) -> set[asyncio.Task[None]]:
        """Publications on the way that this one must not overtake."""
        if EARLY[0] not in self._without:
            return set()
        return {self._latest[key] for key in _keys(publication) if key in self._latest}

    async def _confirm_in_turn(self, publication: Publication, earlier: set[asyncio.Task[None]]) -> None:
        if earlier:
            await asyncio.wait(earlier)
        await self._confirm(publication)

    async def _confirm(self, publication: Publication) -> None:
        while True:
            try:
                answer = await self._js.publish(
                    publication.subject, publication.body, timeout=_ANSWER, headers=publication.headers
                )
                break
            except (nats.errors.Error, OSError, TimeoutError):
                # Perhaps it is stored all the same: then it is there twice, and both count.
                await asyncio.sleep(_AGAIN)
        self.eras[-1].confirmed.append(Confirmed(publication, answer.seq, bool(answer.duplicate)))


def _keys(publication: Publication) -> list[tuple[str, str]]:
    return [(item.table, item.key) for item in publication.items if item.key]
