"""The start of each stream, schema and consumer by itself; one that fails is retried, and delays only what needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from events.subjects import Tenant
from streams.jetstream.specs import ConsumerSpec
from streams.lifecycle.conditions import WaitReasons
from streams.lifecycle.retrying import until_done

# Seconds after which the start goes on without what has neither succeeded nor failed yet.
PATIENCE: Final = 10.0
# Seconds that a stream lets the ones before it go first.
IN_ORDER: Final = 1.0


class _Part:
    """A stream, schema or consumer: made once, and waited for by others."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = asyncio.Event()
        self.tried = asyncio.Event()  # done, or failed at least once
        self.reason = ""


@dataclass(kw_only=True, eq=False)
class CompanyStartup:
    """Starts every company's sources, in any order.

    What makes a stream, schema or consumer is called again until it returns. If it raises `Fatal`, `run` does.
    """

    specs: Sequence[ConsumerSpec]
    stream: Callable[[str], Awaitable[None]]  # makes or extends it
    schema: Callable[[Tenant], Awaitable[None]]  # makes or extends a company's
    consumer: Callable[[ConsumerSpec], Awaitable[None]]
    start_source: Callable[[ConsumerSpec], Awaitable[None]]  # called once for each consumer
    on_company: Callable[[], None]  # called when one joins `companies`
    unserved: WaitReasons
    companies: list[Tenant] = field(default_factory=list, init=False)  # those whose schema is there

    def __post_init__(self) -> None:
        specs = self.specs
        self._streams = {spec.stream: _Part(f"stream {spec.stream}") for spec in specs}
        self._schemas = {
            spec.tenant: _Part(f"company {spec.tenant.company}") for spec in specs if spec.tenant is not None
        }
        self._consumers = {spec: _Part(spec.name) for spec in specs}

    def is_served(self, spec: ConsumerSpec) -> bool:
        """Whether this consumer's source runs."""
        return self._consumers[spec].done.is_set()

    async def run(self) -> None:
        """Return when everything is served. Raises `Fatal`."""
        async with asyncio.TaskGroup() as tasks:
            earlier: _Part | None = None
            for name, part in self._streams.items():
                tasks.create_task(self._make_in_order(part, earlier, partial(self.stream, name)))
                earlier = part
            for tenant in self._schemas:
                tasks.create_task(self._make_schema(tenant))
            for spec in self.specs:
                tasks.create_task(self._make_consumer(spec))

    async def tried(self) -> None:
        """Return when every part is there, failed once or needs one that did; after at most `PATIENCE` seconds."""
        try:
            async with asyncio.timeout(PATIENCE):
                for part in self._consumers.values():
                    await part.tried.wait()
        except TimeoutError:
            for part in self._consumers.values():
                if not part.tried.is_set():
                    self.unserved.begin(part.name, part.reason or "not started yet")

    async def _make_in_order(
        self, part: _Part, earlier: _Part | None, run: Callable[[], Awaitable[None]]
    ) -> None:
        # Where there is no room for all, real-time events are served first, dead letters last.
        if earlier is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(IN_ORDER):
                    await earlier.tried.wait()
        await self._make(part, run)

    async def _make_schema(self, tenant: Tenant) -> None:
        part = self._schemas[tenant]
        await self._make(part, partial(self.schema, tenant))
        self.companies.append(tenant)
        self.on_company()

    async def _make_consumer(self, spec: ConsumerSpec) -> None:
        part = self._consumers[spec]
        for needed in self._needed(spec):
            await needed.tried.wait()
            if not needed.done.is_set():
                self._waits(part, f"waits for {needed.name}")
                await needed.done.wait()
        await self._make(part, partial(self.consumer, spec), partial(self.start_source, spec))

    def _needed(self, spec: ConsumerSpec) -> Iterator[_Part]:
        # A fleet's companies get their schemas with their events.
        if spec.tenant is not None:
            yield self._schemas[spec.tenant]
        yield self._streams[spec.stream]

    async def _make(
        self,
        part: _Part,
        run: Callable[[], Awaitable[None]],
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        await until_done(run, partial(self._waits, part))
        if then is not None:
            await then()
        part.done.set()
        part.tried.set()
        self.unserved.end(part.name)

    def _waits(self, part: _Part, reason: str) -> None:
        # The name is reported beside it.
        reason = reason.removeprefix(f"{part.name}: ")
        part.reason = reason
        part.tried.set()
        self.unserved.begin(part.name, reason)
