"""Faust, without Kafka: which services start in which order, and how the worker ends (design 3 and 9)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import faust
from faust.app.base import BootStrategy
from mode import Service, ServiceT

from streams import logs
from streams.web import Web

logger = logging.getLogger(__name__)

# Seconds for an orderly stop that we asked for ourselves: more than it needs (contract 8.4), for there is nobody
# else who would kill the worker if it hangs.
LAST_RESORT: Final = 60.0


class Connections(Service):
    """Closes what is not a service itself, when everything that uses it has stopped."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._close = close

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
            *app.intake,
        ]


class EventsWorker(logs.Worker):
    """Ends with code 1 and one line when the app cannot go on."""

    def execute_from_commandline(self) -> NoReturn:
        """Run until the end. Raises `SystemExit`: 0 after a signal, 1 after a failure."""
        app = self.app
        _collect_less()
        try:
            super().execute_from_commandline()
        except SystemExit:
            if isinstance(app, EventsApp) and app.failure:
                raise SystemExit(1) from None
            raise


class EventsApp(faust.App):
    """A Faust app whose services are given to it; agents read channels, no broker is ever connected."""

    BootStrategy = Boot

    connections: Sequence[ServiceT] = ()
    intake: Sequence[ServiceT] = ()
    operations: object = None
    failure: str = ""

    def _create_directories(self) -> None:
        """None: Faust's folders are for tables, and there are none."""

    def _new_web(self) -> Web:
        return Web(self)

    def dead_agents(self) -> list[str]:
        """The names of agents that do not read their channel."""
        return [name for name, agent in self.agents.items() if not _reads(agent)]

    def fail(self, reason: str) -> None:
        """End the worker with code 1, after an orderly stop. The first reason is logged."""
        if self.failure:
            return
        self.failure = reason
        logger.critical("giving up: %s", reason)
        end = threading.Timer(LAST_RESORT, os._exit, (1,))
        end.daemon = True
        end.start()
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
