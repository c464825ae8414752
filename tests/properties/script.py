"""Worlds for real workers: what is published when, and which version JetStream gave to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from nats.aio.msg import Msg

from events import envelope
from streams.jetstream.stream_reader import nanoseconds
from testkit.publisher import stored_version
from tests.acceptance.site import HISTORY_STREAM, REALTIME_STREAM, Site, stream_of
from tests.properties.model import Event, Expected, Version, expected
from tests.properties.worlds import ROUNDS, Builder, Built

NUMBER_HEADER: Final = "World-Number"
# Publications on the way at a time.
WINDOW: Final = 64
# Tries that a dead letter has behind it whose event can never be stored: two or three replays, and that is all.
_RETRIED: Final = (3, 4)
# Between two bursts, in seconds: so that workers meet small batches and large ones.
_LONGEST_PAUSE: Final = 0.05
_BURSTS: Final = (1, 3, 10, 40, 120)


class Coming(NamedTuple):
    """An event as it is published once. `lost`: only its dead letters come to a worker."""

    number: int
    event: Event
    lost: bool = False


class Letter(NamedTuple):
    """A dead letter of what was published before; `retried` times it was tried in vain."""

    coming: Coming
    retried: int


class Script:
    """All publications, by rounds, in a drawn order.

    JetStream has one version for one publication, so an event that comes twice as itself is published twice and is
    two events; redeliveries are left to faults. A dead letter carries the version of the first of these, if that
    came before it. If not, or if there is none, its event is published first where no worker looks: so the version
    is a real one, older than most of what the dead letter meets.
    """

    def __init__(self, worlds: Iterable[Builder], company: str, chance: random.Random) -> None:
        self.rounds: list[list[Coming | Letter]] = [[] for _ in range(ROUNDS)]
        self._company = company
        self._chance = chance
        self._numbers = itertools.count()
        self._worlds = [(world, list(self._plan(world))) for world in worlds]
        for turn in self.rounds:
            chance.shuffle(turn)

    @property
    def comings(self) -> list[Coming]:
        """Everything that gets a version."""
        return [coming for _, comings in self._worlds for coming in comings]

    @property
    def letters(self) -> int:
        """How many dead letters there are."""
        return sum(isinstance(part, Letter) for turn in self.rounds for part in turn)

    def wanted(self, versions: Mapping[int, Version]) -> dict[str, Expected]:
        """What each world, by its prefix, must leave when these are the versions."""
        return {
            world.prefix: expected(
                [coming.event._replace(version=versions[coming.number]) for coming in comings],
                self._company,
                world.adopted,
            )
            for world, comings in self._worlds
        }

    def told(self, differences: Iterable[str], versions: Mapping[int, Version]) -> str:
        """The worlds that these differences are about, as a person can read them."""
        text = "\n".join(differences)
        return "\n".join(
            f"{world.prefix}: {world.adopted}\n"
            + "\n".join(f"  {versions[coming.number]} {coming}" for coming in comings)
            for world, comings in self._worlds
            if f"{world.prefix}-" in text or any(versions[one.number].event in text for one in comings)
        )

    def _plan(self, world: Builder) -> Iterator[Coming]:
        hopeless = expected([built.event for built in world.events], self._company).exhausted
        for built in world.events:
            yield from self._come(built, hopeless=built.event.version in hopeless)

    def _come(self, built: Built, *, hopeless: bool) -> Iterator[Coming]:
        event, itinerary = built.event, built.itinerary
        letters = [stop.round for stop in itinerary if stop.letter]
        source: Coming | None = None
        if itinerary[0].letter:
            source = Coming(next(self._numbers), event, lost=True)
            self.rounds[0].append(source)
            yield source
        for stop in itinerary:
            if not stop.letter:
                coming = Coming(next(self._numbers), event)
                self.rounds[stop.round].append(coming)
                source = source or coming
                yield coming
        for turn in letters:
            assert source is not None
            retried = self._chance.choice(_RETRIED) if hopeless else 0
            self.rounds[turn].append(Letter(source, retried))


def _text(version: Version) -> str:
    return f"{version.event}-{version.made}"


class Versions:
    """What the streams stored, read along as it comes: store times are in no answer to a publisher."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._known: dict[int, asyncio.Future[Version]] = defaultdict(loop.create_future)
        self._made: dict[str, int] = {}

    async def follow(self, site: Site) -> None:
        """Begin to read; to be called before anything of this company is published."""
        for stream in (REALTIME_STREAM, HISTORY_STREAM):
            answer = json.loads((await site.nc.request(f"$JS.API.STREAM.INFO.{stream}")).data)
            self._made[stream] = nanoseconds(answer["created"])
            await site.js.subscribe(
                f"v1.*.*.{site.company}", stream=stream, ordered_consumer=True, cb=self._note
            )

    async def _note(self, message: Msg) -> None:
        number = int((message.headers or {})[NUMBER_HEADER])
        stored = stored_version(message.reply)
        made = self._made[message.metadata.stream]
        self._known[number].set_result(Version(stored.ns, stored.sequence, made))

    async def of(self, coming: Coming) -> Version:
        """The version of a publication, once it is stored."""
        return await self._known[coming.number]


class Publishing:
    """Publishes a script: what only its dead letters may tell of to the site `elsewhere`."""

    def __init__(self, site: Site, elsewhere: Site, chance: random.Random) -> None:
        self.versions = Versions()
        self._site = site
        self._elsewhere = elsewhere
        self._chance = chance
        self._window = asyncio.Semaphore(WINDOW)

    async def run(self, script: Script) -> AsyncIterator[float]:
        """Publish in bursts; yields how much of it is on its way, from 0 to 1."""
        total = sum(map(len, script.rounds))
        done = burst = 0
        for turn in script.rounds:
            async with asyncio.TaskGroup() as tasks:
                for part in turn:
                    yield done / total
                    tasks.create_task(self._publish(part))
                    done += 1
                    burst -= 1
                    if burst < 0:
                        burst = self._chance.choice(_BURSTS)
                        await asyncio.sleep(self._chance.uniform(0, _LONGEST_PAUSE))

    async def _publish(self, part: Coming | Letter) -> None:
        if isinstance(part, Letter):
            await self._publish_letter(part, await self.versions.of(part.coming))
            return
        site = self._elsewhere if part.lost else self._site
        body = json.dumps(part.event.payload).encode()
        async with self._window:
            await site.publish(part.event.type, body, **{NUMBER_HEADER: str(part.number)})

    async def _publish_letter(self, letter: Letter, version: Version) -> None:
        event = letter.coming.event
        body = {
            "source_subject": self._site.tenant.subject(event.type),
            "company": self._site.company,
            "original_payload": event.payload,
            "error": "retryable: gave up",
            "error_type": "retryable",
            "retry_count": letter.retried,
            "max_retry": 5,
            # As this release writes it, or the one before.
            "event_version": self._chance.choice((_text(version), version.event)),
            "ts": envelope.now(),
        }
        headers = {"Original-Nats-Msg-Id": f"msg-{version.sequence}"}
        # As from a worker that was killed before its ack: the letter of the one after it is then no second one.
        if self._chance.random() < 0.5:
            headers["Nats-Msg-Id"] = f"{stream_of(event.type)}-{version.sequence}-{version.ns}"
        async with self._window:
            await self._site.publish("v1.dlq", json.dumps(body).encode(), **headers)
