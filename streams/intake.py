"""From a started process to events flowing in: prepare both servers, then start the sources (design 9)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from mode import Service

from streams.readiness import Readiness

logger = logging.getLogger(__name__)

FIRST_WAIT: Final = 0.2
LONGEST_WAIT: Final = 15.0


class Fatal(Exception):
    """Waiting will not help: the operator has to change something."""


class Step(NamedTuple):
    """One step of the start. `run` raises `Fatal` to end the worker; after anything else it is tried again."""

    name: str
    run: Callable[[], Awaitable[None]]


class Intake(Service):
    """Runs the steps in order, each until it works, then starts the sources; stops the sources first of all.

    The steps run in the background, so that `/health` and `/ready` answer meanwhile.
    """

    def __init__(
        self,
        *,
        steps: Sequence[Step],
        sources: Sequence[Service],
        readiness: Readiness,
        ready: asyncio.Event,
        fail: Callable[[str], None],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        """`after` is called when the sources are drained."""
        super().__init__()
        self._steps = steps
        self._sources = sources
        self._readiness = readiness
        self._ready = ready
        self._fail = fail
        self._after = after

    async def on_started(self) -> None:
        """Begin with the steps."""
        self.add_future(self._begin())

    async def on_stop(self) -> None:
        """Drain all sources at once: one after the other they would need the sum of their times."""
        self._readiness.stopping()
        await asyncio.gather(*(source.stop() for source in self._sources if source.started))
        await self._after()

    async def _begin(self) -> None:
        try:
            for step in self._steps:
                await self._until_done(step)
                if self.should_stop:
                    return
            for source in self._sources:
                await self.add_runtime_dependency(source)
        except Fatal as error:
            self._fail(str(error))
            return
        self._readiness.started()
        self._ready.set()
        logger.info("consumers are running")

    async def _until_done(self, step: Step) -> None:
        wait = FIRST_WAIT
        announced = ""
        while not self.should_stop:
            self._readiness.starting(announced or step.name)
            try:
                return await step.run()
            except Fatal:
                raise
            except Exception as error:
                reason = f"{step.name}: {str(error) or type(error).__name__}"
                if reason != announced:
                    logger.warning("waiting: %s", reason)
                announced = reason
            await self.sleep(wait)
            wait = min(wait * 1.5, LONGEST_WAIT)
