"""The start of a worker: what all companies share first, then each company by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from mode import Service

from streams.lifecycle.company_startup import CompanyStartup
from streams.lifecycle.conditions import Conditions, WaitReasons
from streams.lifecycle.retrying import Fatal, until_done
from streams.lifecycle.sources import Sources

logger = logging.getLogger(__name__)

# Seconds that a stop waits for a step whose server does not answer.
CANCEL_SECONDS: Final = 2.0


class StartupStep(NamedTuple):
    """One step of the start. `run` raises `Fatal` to end the worker; after anything else it is tried again."""

    name: str
    run: Callable[[], Awaitable[None]]


class Startup(Service):
    """Runs the steps in order, each until it succeeds, then all companies; at a stop it drains the sources.

    The start runs in the background, so that `/health` and `/ready` answer meanwhile.
    """

    def __init__(
        self,
        *,
        steps: Sequence[StartupStep],
        companies: CompanyStartup,
        sources: Sources,
        conditions: Conditions,
        fail: Callable[[str], None],
        on_drained: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._steps = steps
        self._companies = companies
        self._sources = sources
        self._conditions = conditions
        self.ready = asyncio.Event()  # every company is served or known to wait
        self._fail = fail
        self._on_drained = on_drained
        self._waits = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        self._beginning: asyncio.Task[None] | None = None
        self.add_dependency(sources)

    async def on_started(self) -> None:
        """Begin with the steps."""
        self._beginning = asyncio.create_task(self._begin())
        self.add_future(self._watch(self._beginning))

    async def on_stop(self) -> None:
        """Cancel the start, and drain the sources."""
        self._conditions.phase = "stopping"
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.wait({self._beginning}, timeout=CANCEL_SECONDS)
        await self._sources.drain()
        await self._on_drained()

    async def _watch(self, beginning: asyncio.Task[None]) -> None:
        """End the worker if the start fails."""
        await asyncio.wait({beginning})
        if not beginning.cancelled() and (error := beginning.exception()) is not None:
            if (fatal := _fatal(error)) is None:
                raise error
            self._fail(str(fatal))

    async def _begin(self) -> None:
        for step in self._steps:
            self._conditions.phase = step.name
            await until_done(step.run, partial(self._waiting, step))
            self._waits.end(step.name)
        self._conditions.phase = "companies"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._companies.run())
            await self._companies.tried()
            self._conditions.phase = ""
            self.ready.set()
        logger.info("consumers are running")

    def _waiting(self, step: StartupStep, reason: str) -> None:
        self._conditions.phase = f"{step.name}: {reason}"
        self._waits.begin(step.name, reason)


def _fatal(error: BaseException) -> Fatal | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_fatal, error.exceptions)), None)
    return error if isinstance(error, Fatal) else None
