"""From a started process to events flowing in: what all companies share first, then each company by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from mode import Service

from streams.lifecycle.company_startup import CompanyStarts
from streams.lifecycle.readiness import Readiness
from streams.lifecycle.retrying import Fatal, until_done
from streams.lifecycle.wait_reasons import WaitReasons

__all__ = ["Fatal", "Startup", "StartupStep"]

logger = logging.getLogger(__name__)

# How long a stop waits for a step that asks a silent server.
CANCEL_SECONDS: Final = 2.0


class StartupStep(NamedTuple):
    """One step of the start. `run` raises `Fatal` to end the worker; after anything else it is tried again."""

    name: str
    run: Callable[[], Awaitable[None]]


class Startup(Service):
    """Runs the steps in order, each until it works, then all companies; stops the sources first of all.

    It all runs in the background, so that `/health` and `/ready` answer meanwhile. `ready` is set when every company
    is served or known to wait.
    """

    def __init__(
        self,
        *,
        steps: Sequence[StartupStep],
        companies: CompanyStarts,
        sources: Sequence[Service],
        readiness: Readiness,
        ready: asyncio.Event,
        fail: Callable[[str], None],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        """`sources` are those that may have been started; `after` is called when they are drained."""
        super().__init__()
        self._steps = steps
        self._companies = companies
        self._sources = sources
        self._readiness = readiness
        self._ready = ready
        self._fail = fail
        self._after = after
        self._waits = WaitReasons("waiting: {name}: {reason}", "no longer waiting: {name}")
        self._beginning: asyncio.Task[None] | None = None

    async def on_started(self) -> None:
        """Begin with the steps."""
        self._beginning = asyncio.create_task(self._begin())
        self.add_future(self._watch(self._beginning))

    async def on_stop(self) -> None:
        """Drain all sources at once: one after the other they would need the sum of their times."""
        self._readiness.stopping()
        if self._beginning is not None:
            self._beginning.cancel()
            await asyncio.wait({self._beginning}, timeout=CANCEL_SECONDS)
        await asyncio.gather(*(source.stop() for source in self._sources if source.started))
        await self._after()

    async def _watch(self, beginning: asyncio.Task[None]) -> None:
        """Let what goes wrong in it end the worker."""
        await asyncio.wait({beginning})
        if not beginning.cancelled() and (error := beginning.exception()) is not None:
            if (fatal := _fatal(error)) is None:
                raise error
            self._fail(str(fatal))

    async def _begin(self) -> None:
        for step in self._steps:
            self._readiness.starting(step.name)
            await until_done(step.run, partial(self._waiting, step))
            self._waits.end(step.name)
        self._readiness.starting("companies")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._companies.run())
            await self._companies.tried()
            self._readiness.started()
            self._ready.set()
        logger.info("consumers are running")

    def _waiting(self, step: StartupStep, reason: str) -> None:
        self._readiness.starting(f"{step.name}: {reason}")
        self._waits.begin(step.name, reason)


def _fatal(error: BaseException) -> Fatal | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_fatal, error.exceptions)), None)
    return error if isinstance(error, Fatal) else None
