"""One run of the demo against running servers and a ready worker: publish, watch, account."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import asyncpg
import nats
from nats.aio.client import Client

from demo.live_line import LiveLine
from testkit.accounting import Accounting, Report
from testkit.differences import Problem
from testkit.evidence import Backlog, backlog, gather, total
from testkit.publisher import Confirmed, Ledger, Publisher
from testkit.traffic import Traffic, merged
from testkit.worker import Scrape, Worker

# Retries of one event come up to 8 s apart; without any progress for this long, something is stuck.
PATIENCE: Final = 60.0
# For a dead letter whose replay has begun, once all else is quiet.
SETTLING: Final = 10.0
# Seconds between looks at the worker and its consumers, at the least.
_REFRESH: Final = 1.0
_TRIES: Final = 5
_POLL: Final = 0.25
_ACTIONS: Final = "message_event_service_event_processing_actions_total"
# What is shown after the events stored: the metric, and its labels.
_SHOWN: Final[Mapping[str, tuple[str, dict[str, str]]]] = {
    "retried": (_ACTIONS, {"action": "nack_retryable"}),
    "dead-lettered": (_ACTIONS, {"action": "dlq_published_ack_success"}),
    "exhausted": ("dlq_tasks_dropped_total", {}),
    "new contacts": ("onboarding_tasks_processed_total", {"status": "success_created"}),
}


def show(line: LiveLine, published: int, scrape: Scrape, backlog: Backlog) -> None:
    """Show how far it is, by the worker's page of metrics: the totals, and the rates since the line before."""
    stored = int(scrape.value("message_event_service_events_processed_total"))
    totals = (f"{name} {scrape.value(metric, **labels):.0f}" for name, (metric, labels) in _SHOWN.items())
    publishing, storing = line.rates(published, stored)
    line.show(
        f"published {published} ({publishing:.0f}/s)  stored {stored} ({storing:.0f}/s)"
        f"  {'  '.join(totals)}  lag {backlog.lag}"
    )


class Run:
    """Traffic for `companies`, for which nothing was published before."""

    def __init__(self, client: Client, dsn: str, companies: Sequence[str], *, seed: int = 1) -> None:
        self._js = client.jetstream()
        self._dsn = dsn
        self._companies = companies
        self._seed = seed
        self._ledger = Ledger(self._js)
        self._confirmed: list[Confirmed] = []
        self._publisher = Publisher(client, tries=_TRIES, on_confirmed=self._confirmed.append)
        self._progress = LiveLine()

    async def flow(self, rate: float) -> Report:
        """Publish at `rate` events a second, without end."""
        start = time.monotonic()
        for number, publication in enumerate(merged(self._traffic())):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            await self._publisher.send(publication)
            # Nothing of it is accounted for, and there is no end of it.
            self._confirmed.clear()
        raise AssertionError("traffic has no end")

    async def prove(self, count: int) -> Report:
        """Publish `count` events as fast as they are confirmed; the account of them. Raises `PublishError`."""
        for company in self._companies:
            await self._ledger.follow(company)
        for publication in merged(self._traffic(), count):
            await self._publisher.send(publication)
        await self._publisher.finish()
        return await self._settled()

    async def _settled(self) -> Report:
        """Wait until everything is accounted for, or nothing moves any more; then the account."""
        self._progress.say("waiting until each is accounted for: an update without its row is tried for 15 s")
        seen: object = None
        moved = time.monotonic()
        while True:
            state = await self._backlog()
            quiet = not state.lag and not self._ledger.unseen(self._confirmed)
            report, size = await self.account() if quiet else (None, ())
            if report is not None and report.ok:
                return report
            if seen != (seen := (state, quiet, size)):
                moved = time.monotonic()
            if time.monotonic() - moved > (SETTLING if quiet else PATIENCE):
                return report or (await self.account())[0]
            await asyncio.sleep(_POLL)

    async def account(self) -> tuple[Report, tuple[object, ...]]:
        """The account as things are now, and a value that changes when they do."""
        report = Report()
        sizes: list[object] = []
        confirmed = self._confirmed
        for one in confirmed:
            counts = report.counts[one.publication.event_type]
            counts["published"] += 1
            counts["repeats"] += one.repeat
        for one in self._ledger.unseen(confirmed):
            report.counts[one.publication.event_type]["missing"] += 1
            text = f"{one.publication.subject} sequence {one.sequence}: not in the stream"
            report.problems.append(Problem("lost", text))
        published = list(self._ledger.published(confirmed))
        database = await asyncpg.connect(self._dsn)
        try:
            for company in self._companies:
                evidence = await gather(self._js, database, company)
                sizes.append(evidence.size())
                own = [one for one in published if one.publication.subject.endswith(f".{company}")]
                Accounting(company, own, evidence).add_to(report)
        finally:
            await database.close()
        return report, tuple(sizes)

    async def watch(self, worker: Worker) -> None:
        """Show progress without end. Raises `WorkerError` when the worker is gone."""
        scrape = Scrape("")
        while True:
            status, text = await asyncio.to_thread(worker.page, "/metrics", 2.0)
            worker.check()
            if status == 200:
                scrape = Scrape(text)
            with suppress(nats.errors.Error):
                show(self._progress, self._publisher.published, scrape, await self._backlog())
            await asyncio.sleep(max(_REFRESH, self._progress.every))

    async def close(self) -> None:
        """Leave the progress line and stop reading."""
        self._progress.end()
        await self._publisher.close()
        await self._ledger.close()

    async def _backlog(self) -> Backlog:
        return total([await backlog(self._js, company) for company in self._companies])

    def _traffic(self) -> list[Traffic]:
        start = int(time.time())
        return [Traffic(company, self._seed, start=start) for company in self._companies]
