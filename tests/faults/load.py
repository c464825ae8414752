"""Known events at a steady rate, each confirmed by JetStream however long that takes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from nats.aio.client import Client
from nats.js import JetStreamContext

from testkit.oracle import Published
from testkit.publisher import Confirmed, Ledger, Publisher
from testkit.traffic import DECK, Publication, Traffic

WINDOW: Final = 32
_ANSWER: Final = 1.0
_POLL: Final = 0.01
_UNTIL_SEEN: Final = 20.0
# Events that are retried by design: without them every other second delivery stands out.
RETRIED: Final = ("early", "orphan", "repeat")
# Updates that come before their rows: while nothing can be published for longer than they are retried, they become
# dead letters by design.
EARLY: Final = ("early",)
# Events that compare by a time of their own.
HISTORY: Final = ("history",)


class Era:
    """What was confirmed while one and the same streams stood, and how these stored it."""

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
        client: Client,
        company: str,
        *,
        seed: int,
        rate: float,
        without: tuple[str, ...] = (),
        often: Mapping[str, int] | None = None,
    ) -> None:
        self._js = client.jetstream()
        self._publisher = Publisher(
            client, window=WINDOW, patience=_ANSWER, tries=None, on_confirmed=self._confirmed
        )
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
        self._sending = False
        self._unconfirmed: Counter[str] = Counter()
        self.eras = [Era(self._js)]

    async def run(self) -> None:
        """Publish until `finish` is called, and then what early updates still wait for."""
        async with self._publisher:
            for publication in self._publications():
                await self._going.wait()
                self._sending = True
                await self._in_turn(publication)
                self._unconfirmed.update(_keys(publication))
                await self._publisher.send(publication)
                self._sending = False
                self._at_once -= 1
                await asyncio.sleep(0 if self._at_once > 0 else self._pause)
            await self._publisher.finish()

    def burst(self, count: int) -> None:
        """Publish the next ones as fast as they are confirmed: batches grow then."""
        self._at_once = count

    def finish(self) -> None:
        """Let `run` come to its end."""
        self._stopping = True

    async def hold(self) -> None:
        """Publish nothing any more; returns when everything in flight is confirmed."""
        self._going.clear()
        while self._sending:
            await asyncio.sleep(_POLL)
        await self._publisher.finish()

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
        kinds, weights = list(self._weights), list(self._weights.values())
        while not self._stopping:
            at += 0.1
            yield self._traffic.make(self._rng.choices(kinds, weights)[0], at=at)

    async def _in_turn(self, publication: Publication) -> None:
        """Wait for the publications in flight that this one must not overtake."""
        while EARLY[0] in self._without and any(self._unconfirmed[key] for key in _keys(publication)):
            await asyncio.sleep(_POLL)

    def _confirmed(self, event: Confirmed) -> None:
        # One that had no answer in time is perhaps stored all the same: then it is there twice, and both count.
        self._unconfirmed.subtract(_keys(event.publication))
        self.eras[-1].confirmed.append(event)


def _keys(publication: Publication) -> list[str]:
    return [item.key for item in publication.items if item.key]
