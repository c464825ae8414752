"""Worlds for real workers: what is published when, and which version JetStream gave to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from events import envelope
from streams.jetstream.stream_reader import nanoseconds
from testkit.oracle import Published, Version, expected, facts
from testkit.publisher import Ledger, Publisher
from testkit.traffic import MESSAGE_ID_HEADER, NUMBER_HEADER, Publication
from tests import builders
from tests.acceptance.company_probe import HISTORY_STREAM, REALTIME_STREAM, CompanyProbe, stream_of
from tests.properties.outcome import Adopted
from tests.properties.worlds import ROUNDS, Builder, Built

# Tries that a dead letter has behind it whose event can never be stored: two or three replays, and that is all.
_RETRIED: Final = (3, 4)
# Between two bursts, in seconds: so that workers meet small batches and large ones.
_LONGEST_PAUSE: Final = 0.05
_BURSTS: Final = (1, 3, 10, 40, 120)


class DeadLetter(NamedTuple):
    """A dead letter of what was published before; it was retried so many times in vain."""

    publication: Publication
    retried: int


class Script:
    """All publications, by rounds, in a drawn order.

    JetStream has one version for one publication, so an event that comes twice as itself is published twice and is
    two events; redeliveries are left to faults. A dead letter carries the version of the first of these, if that
    came before it. If not, or if there is none, its event is published first where no worker looks: so the version
    is a real one, older than most of what the dead letter meets.
    """

    def __init__(self, worlds: Iterable[Builder], elsewhere: str, chance: random.Random) -> None:
        """`elsewhere`: the company of events of which only dead letters come to a worker."""
        self.rounds: list[list[Publication | DeadLetter]] = [[] for _ in range(ROUNDS)]
        self._elsewhere = elsewhere
        self._chance = chance
        self._numbers = itertools.count()
        self._worlds = [(world, list(self._plan(world))) for world in worlds]
        for turn in self.rounds:
            chance.shuffle(turn)

    @property
    def publications(self) -> list[Publication]:
        """Everything that gets a version."""
        return [publication for _, publications in self._worlds for publication in publications]

    @property
    def adopted(self) -> list[Adopted]:
        """The rows that were there before."""
        return [row for world, _ in self._worlds for row in world.adopted]

    @property
    def letters(self) -> int:
        """How many dead letters there are."""
        return sum(isinstance(part, DeadLetter) for turn in self.rounds for part in turn)

    def is_lost(self, publication: Publication) -> bool:
        """Whether only dead letters of it come to a worker."""
        return publication.subject.endswith(f".{self._elsewhere}")

    def described(self, text: str, versions: Mapping[int, Version]) -> str:
        """The worlds that this text is about, as a person can read them."""
        return "\n".join(
            f"{world.prefix}: {world.adopted}\n"
            + "\n".join(f"  {versions[one.number]} {one}" for one in publications)
            for world, publications in self._worlds
            if f"{world.prefix}-" in text
            or any(f"sequence {versions[one.number].sequence}:" in text for one in publications)
        )

    def _plan(self, world: Builder) -> Iterator[Publication]:
        every = facts(built.event for built in world.events)
        refused = [fact for fact in every if fact.item.refused]
        hopeless = {fact.event.version for fact in (*refused, *expected(every).orphans)}
        for built in world.events:
            yield from self._publications(built, hopeless=built.event.version in hopeless)

    def _publications(self, built: Built, *, hopeless: bool) -> Iterator[Publication]:
        source: Publication | None = None
        if built.arrivals[0].letter:
            subject = f"{built.event.publication.event_type}.{self._elsewhere}"
            source = self._publication(built, 0, subject)
            yield source
        for arrival in built.arrivals:
            if not arrival.letter:
                publication = self._publication(built, arrival.round, built.event.publication.subject)
                source = source or publication
                yield publication
        for arrival in built.arrivals:
            if arrival.letter:
                assert source is not None
                retried = self._chance.choice(_RETRIED) if hopeless else 0
                self.rounds[arrival.round].append(DeadLetter(source, retried))

    def _publication(self, built: Built, turn: int, subject: str) -> Publication:
        number = next(self._numbers)
        headers = {NUMBER_HEADER: str(number)}
        publication = built.event.publication._replace(number=number, subject=subject, headers=headers)
        self.rounds[turn].append(publication)
        return publication


class Publishing:
    """Publishes a script for the company of a probe; dead letters once their events have their versions."""

    def __init__(self, probe: CompanyProbe, chance: random.Random) -> None:
        self._probe = probe
        self._chance = chance
        self._publisher = Publisher(probe.nc, tries=5)
        self._ledger = Ledger(probe.js)
        self._made: dict[str, int] = {}

    async def follow(self, *companies: str) -> None:
        """Begin to read what is stored; to be called before anything of these companies is published."""
        for company in companies:
            await self._ledger.follow(company)
        for stream in (REALTIME_STREAM, HISTORY_STREAM):
            answer = json.loads((await self._probe.nc.request(f"$JS.API.STREAM.INFO.{stream}")).data)
            self._made[stream] = nanoseconds(answer["created"])

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
            await self._publisher.finish()

    async def published(self, script: Script) -> list[Published]:
        """The events as they were stored."""
        return [Published(one, await self._version(one)) for one in script.publications]

    async def close(self) -> None:
        """Arrival publishing and reading."""
        await self._publisher.close()
        await self._ledger.close()

    async def _version(self, publication: Publication) -> Version:
        while (found := self._ledger.version(publication)) is None:
            await asyncio.sleep(0.01)
        return found

    async def _publish(self, part: Publication | DeadLetter) -> None:
        if isinstance(part, DeadLetter):
            part = self._letter(part, await self._version(part.publication))
        await self._publisher.send(part)

    def _letter(self, letter: DeadLetter, version: Version) -> Publication:
        event = letter.publication
        stream = stream_of(event.event_type)
        # As this release writes it, or the one before.
        incarnation = self._chance.choice((f"-{self._made[stream]}", ""))
        body = builders.envelope(
            json.loads(event.body),
            source_subject=self._probe.tenant.subject(event.event_type),
            company=self._probe.company,
            error="retryable: gave up",
            error_type="retryable",
            retry_count=letter.retried,
            event_version=f"{version.ns}-{version.sequence}{incarnation}",
            ts=envelope.now(),
        )
        headers = {"Original-Nats-Msg-Id": f"msg-{version.sequence}"}
        # As from a worker that was killed before its ack: the letter of the one after it is then no second one.
        if self._chance.random() < 0.5:
            headers[MESSAGE_ID_HEADER] = f"{stream}-{version.sequence}-{version.ns}"
        subject = self._probe.tenant.subject("v1.dlq")
        return event._replace(subject=subject, body=builders.body(body), headers=headers)
