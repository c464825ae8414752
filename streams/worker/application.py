"""Faust without Kafka: the order in which services start, and how the worker ends."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import faust
from faust.app.base import BootStrategy
from mode import Service, ServiceT

from streams import logs
from streams.monitoring.http import Web
from streams.worker.shutdown import EXIT_CUT, Shutdown

logger = logging.getLogger(__name__)

# Seconds to stop for each service that has no deliveries in flight.
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
    """Starts connections first and sources last; they stop in reverse order."""

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
            *app.services,
        ]


class EventsWorker(logs.Worker):
    """Ends within the time for a stop, and with code 1 and one line when the app cannot go on."""

    def install_signal_handlers(self) -> None:
        """Stop at a signal, within the time for it, and at once at a second one."""
        super().install_signal_handlers()
        if isinstance(self.app, EventsApp):
            self.app.shutdown.watch((signal.SIGTERM, signal.SIGINT))

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
            if isinstance(app, EventsApp) and app.shutdown.failure:
                raise SystemExit(1) from None
            if isinstance(app, EventsApp) and app.shutdown.left_behind:
                raise SystemExit(EXIT_CUT) from None
            raise


class EventsAgent(faust.Agent):
    """An agent that formats only log lines that are shown: Faust writes a debug line for each batch."""

    def _format_log(self, severity: int, msg: str, *args: Any, **kwargs: Any) -> str:
        return (
            super()._format_log(severity, msg, *args, **kwargs) if self.logger.isEnabledFor(severity) else msg
        )


# Service makes each class a logger of its own; the lines of an agent are Faust's, and so is their level.
EventsAgent.logger = faust.Agent.logger


class EventsApp(faust.App):
    """A Faust app whose services are given to it; agents read channels, no broker is ever connected."""

    BootStrategy = Boot

    def __init__(
        self, name: str, *, shutdown: Shutdown, connections: Sequence[ServiceT], **options: Any
    ) -> None:
        """`options` are Faust's."""
        super().__init__(
            name,
            broker="kafka://none.invalid",  # never connected: Faust requires a broker's name
            Worker=EventsWorker,
            Agent=EventsAgent,
            agent_supervisor="mode.supervisors.CrashingSupervisor",
            **options,
        )
        self.shutdown = shutdown
        self.connections = connections
        self.services: list[ServiceT] = []

    def register_services(self, *services: ServiceT) -> None:
        """Start these after the agents, in this order; the last one stops first and drains the sources."""
        self.services += services

    def _create_directories(self) -> None:
        """None: Faust's folders are for tables, and there are none."""

    def _new_web(self) -> Web:
        return Web(self)

    async def _stop_children(self) -> None:
        """Stop the services, last ones first. One that hangs is left behind, so that the others can still end."""
        for child in reversed(self._children):
            self.shutdown.stopping = child.label
            # The last service drains the sources, and bounds that itself.
            bound = self.shutdown.seconds if child in self.services[-1:] else PART_SECONDS
            stop = asyncio.ensure_future(child.stop())
            done, _ = await asyncio.wait({stop}, timeout=bound)
            if not done:
                logger.error("%s did not stop within %g s, the others are stopped", child.label, bound)
                self.shutdown.left_behind.append(child.label)
            elif error := stop.exception():
                logger.error("%s did not stop in order", child.label, exc_info=error)
        self.shutdown.stopping = ""

    def running_agents(self) -> dict[str, bool]:
        """Whether each agent reads its channel, by name."""
        return {name: _reads(agent) for name, agent in self.agents.items()}


def use_fast_loop() -> None:
    """Run on uvloop where it is installed (the extra `speed`); it has to be chosen before Faust makes a loop."""
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())


def _collect_less() -> None:
    """Let the garbage collector examine fewer objects, less often."""
    # What the imports made stays, and events are freed by their reference counts (docs/decisions.md).
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 10, 20)


def _reads(agent: Any) -> bool:
    tasks = [actor.actor_task for actor in agent._actors]
    return any(task is not None and not task.done() for task in tasks)
