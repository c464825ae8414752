"""Faust, without Kafka: which services start in which order, and how the worker ends (design 3 and 9)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import faust
from faust.app.base import BootStrategy
from mode import Service, ServiceT

from streams import logs
from streams.monitoring.http import Web
from streams.worker.shutdown import EXIT_CUT, ShutdownDeadline

logger = logging.getLogger(__name__)

# Seconds to stop for each part that has nothing to hand back.
PART_SECONDS: Final = 2.5


class Connections(Service):
    """Closes what is not a service itself, when everything that uses it has stopped."""

    def __init__(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._name = name
        self._close = close

    @property
    def label(self) -> str:
        """What is closed."""
        return self._name

    async def on_stop(self) -> None:
        """Close."""
        await self._close()


class Boot(BootStrategy):
    """Connections first, intake last; they stop in exact reverse."""

    enable_kafka = False

    def server(self) -> Iterable[ServiceT]:
        """The services of a worker, in starting order."""
        app = self.app
        assert isinstance(app, EventsApp)
        return [
            *self.sensors(),
            *app.connections,
            *self.web_server(),
            *self.agents(),
            *app.startup,
        ]


class EventsWorker(logs.Worker):
    """Ends within the time for a stop, and with code 1 and one line when the app cannot go on."""

    def install_signal_handlers(self) -> None:
        """Stop at a signal, within the time for it, and at once at a second one."""
        super().install_signal_handlers()
        if isinstance(self.app, EventsApp):
            self.app.deadline.watch((signal.SIGTERM, signal.SIGINT))

    async def _sentinel_task(self) -> None:
        """A last turn of the event loop; mode's own takes a second of the time for the stop."""
        await asyncio.sleep(0)

    def execute_from_commandline(self) -> NoReturn:
        """Run until the end. Raises `SystemExit`: 0 after a signal, 1 after a failure, 75 if a part did not stop."""
        app = self.app
        _collect_less()
        try:
            super().execute_from_commandline()
        except SystemExit:
            if isinstance(app, EventsApp) and app.failure:
                raise SystemExit(1) from None
            if isinstance(app, EventsApp) and app.left_behind:
                raise SystemExit(EXIT_CUT) from None
            raise


class EventsApp(faust.App):
    """A Faust app whose services are given to it; agents read channels, no broker is ever connected."""

    BootStrategy = Boot

    connections: Sequence[ServiceT] = ()
    startup: Sequence[ServiceT] = ()
    operations: object = None
    failure: str = ""

    def __init__(self, *args: Any, stop_timeout: float, **options: Any) -> None:
        """`stop_timeout` is the time for the whole stop, in seconds; the rest is Faust's."""
        super().__init__(*args, **options)
        self.deadline = ShutdownDeadline(stop_timeout, self._unstopped, failed=lambda: bool(self.failure))
        self.left_behind: list[str] = []
        self._stopping = ""

    def _create_directories(self) -> None:
        """None: Faust's folders are for tables, and there are none."""

    def _new_web(self) -> Web:
        return Web(self)

    async def _stop_children(self) -> None:
        """Stop the services, last ones first. One that hangs is left behind, so that the others can still end."""
        for child in reversed(self._children):
            self._stopping = child.label
            # The last of intake hands back what was fetched, and bounds that itself.
            bound = self.deadline.seconds if child in self.startup[-1:] else PART_SECONDS
            stop = asyncio.ensure_future(child.stop())
            done, _ = await asyncio.wait({stop}, timeout=bound)
            if not done:
                logger.error("%s did not stop within %g s, the others are stopped", child.label, bound)
                self.left_behind.append(child.label)
            elif error := stop.exception():
                logger.error("%s did not stop in order", child.label, exc_info=error)
        self._stopping = ""

    def _unstopped(self) -> str:
        return ", ".join(filter(None, (*self.left_behind, self._stopping)))

    def dead_agents(self) -> list[str]:
        """The names of agents that do not read their channel."""
        return [name for name, agent in self.agents.items() if not _reads(agent)]

    def fail(self, reason: str) -> None:
        """End the worker with code 1, after an orderly stop. The first reason is logged."""
        if self.failure:
            return
        self.failure = reason
        logger.critical("giving up: %s", reason)
        self.deadline.begin()
        # The worker's own way to stop in order, and to wait for it.
        os.kill(os.getpid(), signal.SIGTERM)


def use_fast_loop() -> None:
    """Run on uvloop where it is installed (the extra `speed`); it has to be chosen before Faust makes a loop."""
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def _collect_less() -> None:
    """Let the garbage collector look at fewer objects, less often.

    What the imports left stays, and events are freed by their reference counts: looking at all of it again and
    again was a tenth of a worker's time under load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 20)


def _reads(agent: Any) -> bool:
    tasks = [actor.actor_task for actor in agent._actors]
    return any(task is not None and not task.done() for task in tasks)
