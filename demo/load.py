"""`python -m demo.load`: publishes load for test companies, at a rate or as fast as JetStream confirms it."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from demo.load_metrics import LoadError, Tally, page
from demo.load_options import Options, parse
from demo.load_report import Latencies, Progress, State, Summary
from demo.load_traffic import LoadTraffic, in_turns
from events.subjects import Tenant
from testkit.publisher import Confirmed, Publisher, PublishError
from testkit.traffic import Publication

_POLL: Final = 0.25
_CLOSE: Final = 2.0
# The last events of a plan may come this much after its end; what is later is left out, and said.
_GRACE: Final = 0.5
# Without a pause the answers would wait, and seem slow, until the window is full.
_BREATHE: Final = 16
# Room for a full window while the connection is away.
_PENDING_BYTES: Final = 256 * 1024 * 1024


def main() -> int:
    """Run it; the exit status: 0 every attempt was confirmed, 1 not, 2 wrong options."""
    options = parse(sys.argv[1:])
    tally = Tally(options.companies)
    try:
        with page(tally, options.metrics_port) as port:
            print(f"seed {options.seed}, metrics on http://127.0.0.1:{port}/metrics", flush=True)
            return 0 if asyncio.run(Load(options, tally, Progress(sys.stdout)).run()) else 1
    except PublishError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


class Load:
    """One run. A signal ends the stage that it is in: sending, then waiting for the last answers."""

    def __init__(self, options: Options, tally: Tally, progress: Progress) -> None:
        self._options = options
        self._tally = tally
        self._progress = progress
        self._client = Client()
        self._publisher = Publisher(
            self._client, window=options.window, on_confirmed=self._confirmed, on_failed=self._failed
        )
        self._latencies = Latencies()
        self._reasons: Counter[str] = Counter()
        self._repeats = 0
        self._last_answer = 0.0
        self._trouble = "no answer"
        self._refused = False
        self._stage: asyncio.Task[None] | None = None
        self._signals = 0
        self._waited = False
        self._started = 0.0
        self._behind = 0.0
        self._largest_lag = 0.0

    async def run(self) -> bool:
        """Publish, and print the summary; whether all is well. Raises `PublishError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        failure: PublishError | None = None
        try:
            await self._until_signal(1, self._prepare())
            await self._until_signal(1, self._publish())
        except PublishError as error:
            if not self._started:
                raise
            failure = error
        finally:
            await self._until_signal(2, self._publisher.finish())
            await self._close()
        if self._started:
            self._progress.update(self._state())
            self._progress.end()
        summary = self._summary()
        self._progress.say(summary.text())
        if failure:
            raise failure
        return summary.ok

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
        if self._signals == 1:
            self._progress.say("stopping: waiting for the last confirmations")
        if self._stage is not None:
            self._stage.cancel()

    async def _prepare(self) -> None:
        limit = self._options.wait
        try:
            async with asyncio.timeout(limit):
                await self._connect()
        except TimeoutError:
            raise LoadError(
                f"--nats-url: no NATS at {self._hosts()} in {limit:g} s: {self._trouble}"
            ) from None
        except (nats.errors.Error, OSError, ValueError) as error:
            raise LoadError(f"--nats-url: no NATS at {self._hosts()}: {type(error).__name__}") from error
        subjects = [
            Tenant(company).subject(event_type)
            for company in self._options.companies
            for event_type in self._options.mix
        ]
        for subject in subjects:
            await self._wait_stream(subject)

    async def _connect(self) -> None:
        await self._client.connect(
            list(self._options.nats_url),
            name="daisi load generator",
            error_cb=self._note,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            pending_size=_PENDING_BYTES,
        )

    async def _wait_stream(self, subject: str) -> None:
        """Raises `LoadError` if no stream takes the subject in time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._options.wait
        while (trouble := await self._stream_trouble(subject)) is not None:
            if loop.time() >= end:
                raise LoadError(
                    f"no stream takes {subject} after {self._options.wait:g} s ({trouble}): "
                    "start a worker first, it creates the streams"
                )
            if not self._waited:
                self._progress.say(
                    f"waiting for a stream that takes {subject} ({trouble}): a worker creates it"
                )
                self._waited = True
            await asyncio.sleep(_POLL)

    async def _stream_trouble(self, subject: str) -> str | None:
        try:
            await self._client.jetstream().find_stream_name_by_subject(subject)
        except nats.js.errors.NotFoundError:
            return "there is none"
        except (nats.errors.Error, TimeoutError) as error:
            return f"JetStream: {type(error).__name__}"
        return None

    async def _publish(self) -> None:
        """Send what the options ask for, each event at its time. Raises `PublishError`."""
        self._started = time.monotonic()
        watch = asyncio.create_task(self._watch())
        try:
            for number, traffic in enumerate(in_turns(self._traffic())):
                if self._ended(number):
                    return
                await self._until_due(number)
                await self._publisher.wait_room()
                publication = traffic.event(time.time())
                self._tally.counts[publication.subject].attempted += 1
                await self._publisher.send(publication)
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    def _confirmed(self, event: Confirmed) -> None:
        self._tally.counts[event.publication.subject].confirmed += 1
        self._latencies.add(event.seconds)
        self._repeats += event.repeat
        self._last_answer = time.monotonic()

    def _failed(self, publication: Publication, reason: str) -> None:
        self._tally.counts[publication.subject].errors += 1
        self._reasons[reason] += 1

    def _traffic(self) -> list[LoadTraffic]:
        options = self._options
        # Another run, though of the same seed, is not a repeat of this one to the stream.
        run = f"load-{time.time_ns():x}"
        return [
            LoadTraffic(
                company,
                run=run,
                seed=options.seed,
                mix=options.mix,
                invalid=options.invalid,
                agents=options.agents,
            )
            for company in options.companies
        ]

    def _ended(self, number: int) -> bool:
        planned, duration = self._options.planned, self._options.duration
        if planned is not None and number >= planned:
            return True
        if duration is None:
            return False
        return time.monotonic() - self._started >= duration + (_GRACE if planned else 0.0)

    async def _until_due(self, number: int) -> None:
        """By a schedule that is fixed from the start: what is late does not delay what follows."""
        rate = self._options.rate
        delay = self._started + number / rate - time.monotonic() if rate else 0.0
        if delay > 0 or not number % _BREATHE:
            await asyncio.sleep(max(0.0, delay))
        if rate:
            self._behind = max(0.0, time.monotonic() - self._started - number / rate)
            self._largest_lag = max(self._largest_lag, self._behind)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._progress.every)
            self._progress.update(self._state())

    def _state(self) -> State:
        elapsed = time.monotonic() - self._started
        total = self._tally.total()
        share = None
        if self._options.planned is not None:
            share = total.attempted / self._options.planned
        elif self._options.duration is not None:
            share = elapsed / self._options.duration
        return State(elapsed, total, share, self._behind)

    def _summary(self) -> Summary:
        return Summary(
            tally=self._tally,
            latencies=self._latencies,
            reasons=self._reasons,
            duplicates=self._repeats,
            elapsed=self._elapsed(),
            rate=self._options.rate,
            planned=self._options.planned,
            largest_lag=self._largest_lag,
            stopped=self._signals > 0,
        )

    def _elapsed(self) -> float:
        """To the last confirmation, or to the end of the last event's turn if that is later."""
        turns = self._tally.total().attempted / self._options.rate if self._options.rate else 0.0
        return max(self._last_answer - self._started, turns, 0.0)

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
            self._trouble, self._refused = str(error), True
        elif not self._refused:
            self._trouble = type(error).__name__

    def _hosts(self) -> str:
        """The servers, without their credentials."""
        return ", ".join(url.rpartition("@")[2].rpartition("//")[2] for url in self._options.nats_url)


if __name__ == "__main__":
    sys.exit(main())
