"""`python -m demo.load`: publishes load for test companies, at a rate or as fast as JetStream confirms it."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from demo.load_options import Options, parse
from demo.load_report import LoadReport, Progress, page
from events.subjects import Tenant
from streams.config.credentials import host
from testkit.publisher import Publisher, PublishError
from testkit.traffic import COMPANY_HEADER, DECK, MESSAGE_ID_HEADER, Publication, Traffic

_POLL: Final = 0.25
_CLOSE: Final = 2.0
# The last events of a plan may come this much after its end; what is later is left out, and said.
_GRACE: Final = 0.5
# Without a pause the answers would wait, and seem slow, until the window is full.
_BREATHE: Final = 16
# Room for a full window while the connection is away.
_PENDING_BYTES: Final = 256 * 1024 * 1024
# The kinds of the demo's deck by event type. Left out: repeats and updates that come before their row.
_CARDS: Final[Mapping[str, tuple[str, ...]]] = {
    "v1.messages.upsert": ("incoming", "outgoing", "group", "campaign"),
    "v1.messages.update": ("status", "edit", "delete"),
    "v1.chats.upsert": ("chat",),
    "v1.chats.update": ("unread", "read", "unread many"),
    "v1.contacts.upsert": ("contact",),
    "v1.contacts.update": ("rename",),
    "v1.connection.update": ("connection",),
    "v1.history.messages": ("history messages",),
    "v1.history.chats": ("history chats",),
    "v1.history.contacts": ("history contacts",),
}


class LoadTraffic:
    """The events of one company.

    The same seed gives the same kinds of events about the same rows; times are those of the sending. `run` makes
    the `Nats-Msg-Id` of this run its own.
    """

    def __init__(self, company: str, run: str, options: Options) -> None:
        self._company = company
        self._run = run
        self._invalid = options.invalid
        self._rng = random.Random(f"load {company} {options.seed}")
        self._traffic = Traffic(company, options.seed, start=0, agents=options.agents, broken_share=0.0)
        self._mix = options.mix

    def event(self, now: float) -> Publication:
        """The next event; `now` is Unix seconds."""
        event_type = self._rng.choices(list(self._mix), list(self._mix.values()))[0]
        if self._rng.random() < self._invalid:
            made = self._traffic.spoil(event_type, at=now)
        else:
            cards = _CARDS[event_type]
            card = self._rng.choices(cards, [DECK[name] for name in cards])[0]
            made = self._traffic.make(card, at=now)
        message_id = f"{self._run}-{self._company}-{made.number}"
        return made._replace(headers={MESSAGE_ID_HEADER: message_id, COMPANY_HEADER: self._company})


def main() -> int:
    """Run it; the exit status: 0 every attempt was confirmed, 1 not, 2 wrong options."""
    options = parse(sys.argv[1:])
    report = LoadReport(options)
    try:
        with page(report.tally, options.metrics_port) as port:
            print(f"seed {options.seed}, metrics on http://127.0.0.1:{port}/metrics", flush=True)
            asyncio.run(Load(options, report).run())
    except PublishError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0 if report.ok else 1


class Load:
    """One run. A signal ends the stage that it is in: sending, then waiting for the last answers."""

    def __init__(self, options: Options, report: LoadReport) -> None:
        self._options = options
        self._report = report
        self._progress = Progress(sys.stdout)
        self._client = Client()
        self._publisher = Publisher(
            self._client, window=options.window, on_confirmed=report.confirmed, on_failed=report.failed
        )
        self._trouble = ""
        self._stage: asyncio.Task[None] | None = None
        self._signals = 0

    async def run(self) -> None:
        """Publish, and print the summary. Raises `PublishError`."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt)
        try:
            await self._until_signal(1, self._prepare())
            await self._until_signal(1, self._publish())
        finally:
            await self._until_signal(2, self._publisher.finish())
            await self._close()
            if self._report.started:
                self._progress.update(self._report)
                self._progress.end()
            if self._report.started or self._signals:
                self._progress.say(self._report.text())

    async def _until_signal(self, last: int, work: Coroutine[Any, Any, None]) -> None:
        """Do a stage of the work, unless this many signals have come or come meanwhile."""
        if self._signals >= last:
            work.close()
            return
        self._stage = asyncio.create_task(work)
        await asyncio.wait({self._stage})
        if not self._stage.cancelled():
            self._stage.result()

    def _interrupt(self) -> None:
        self._signals += 1
        self._report.stopped = True
        if self._signals == 1:
            self._progress.say("stopping: waiting for the last confirmations")
        if self._stage is not None:
            self._stage.cancel()

    async def _prepare(self) -> None:
        hosts = ", ".join(map(host, self._options.nats_url))
        try:
            async with asyncio.timeout(self._options.wait):
                await self._client.connect(
                    list(self._options.nats_url),
                    name="daisi load generator",
                    error_cb=self._note,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    pending_size=_PENDING_BYTES,
                )
        except (nats.errors.Error, OSError, ValueError) as error:
            trouble = self._trouble or type(error).__name__
            raise PublishError(
                f"--nats-url: no NATS at {hosts} in {self._options.wait:g} s: {trouble}"
            ) from None
        for company, event_type in itertools.product(self._options.companies, self._options.mix):
            await self._wait_stream(Tenant(company).subject(event_type))

    async def _wait_stream(self, subject: str) -> None:
        """Raises `PublishError` if no stream takes the subject in time."""
        end, said = time.monotonic() + self._options.wait, False
        while True:
            try:
                await self._client.jetstream().find_stream_name_by_subject(subject)
                return
            except nats.js.errors.NotFoundError:
                trouble = "there is none"
            except (nats.errors.Error, TimeoutError) as error:
                trouble = f"JetStream: {type(error).__name__}"
            if time.monotonic() >= end:
                raise PublishError(
                    f"no stream takes {subject} after {self._options.wait:g} s ({trouble}): "
                    "start a worker first, it creates the streams"
                )
            if not said:
                self._progress.say(
                    f"waiting for a stream that takes {subject} ({trouble}): a worker creates it"
                )
                said = True
            await asyncio.sleep(_POLL)

    async def _publish(self) -> None:
        """Send what the options ask for, each event at its time. Raises `PublishError`."""
        # Another run, though of the same seed, is not a repeat of this one to the stream.
        run = f"load-{time.time_ns():x}"
        traffic = [LoadTraffic(company, run, self._options) for company in self._options.companies]
        self._report.started = time.monotonic()
        watch = asyncio.create_task(self._watch())
        try:
            for number, company in enumerate(itertools.cycle(traffic)):
                if self._ended(number):
                    return
                await self._until_due(number)
                await self._publisher.wait_room()
                publication = company.event(time.time())
                self._report.sent(publication)
                await self._publisher.send(publication)
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    def _ended(self, number: int) -> bool:
        planned, duration = self._options.planned, self._options.duration
        if planned is not None and number >= planned:
            return True
        if duration is None:
            return False
        return time.monotonic() - self._report.started >= duration + (_GRACE if planned else 0.0)

    async def _until_due(self, number: int) -> None:
        """By a schedule that is fixed from the start: what is late does not delay what follows."""
        rate = self._options.rate
        due = self._report.started + number / rate if rate else 0.0
        delay = due - time.monotonic()
        if delay > 0 or not number % _BREATHE:
            await asyncio.sleep(max(0.0, delay))
        if rate:
            self._report.late(time.monotonic() - due)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._progress.every)
            self._progress.update(self._report)

    async def _close(self) -> None:
        await self._publisher.close()
        if self._client.is_connected or self._client.is_reconnecting:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                async with asyncio.timeout(_CLOSE):
                    await self._client.close()

    async def _note(self, error: Exception) -> None:
        """Remember what the connection complains of: the server's words, or else only the kind of error."""
        # Other texts may quote the address with its password. A server that refuses us closes the connection, too.
        if type(error) is nats.errors.Error:
            self._trouble = str(error)
        self._trouble = self._trouble or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
