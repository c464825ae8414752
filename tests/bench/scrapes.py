"""The page of metrics of many companies: how large it is, how long it takes, and what events beside it take."""

from __future__ import annotations

import asyncio
import itertools
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

from testkit.traffic import Publication
from testkit.worker import Worker, WorkerError
from tests.bench.environment import BenchError, Place
from tests.bench.events import Author, Event, Load
from tests.bench.lines import Line
from tests.bench.measuring import WARM_UP, Section, latencies, percentile
from tests.bench.publishing import EventPublisher, flood, publisher, steadily
from tests.bench.runs import Run
from tests.bench.systems import SystemUnderTest, launch, under_test

# Events a second, of this many of the companies.
RATE: Final = 100.0
_PACED: Final = 4
# Seconds between two scrapes while events are timed: fifteen times as often as Prometheus does it.
_SCRAPE_EVERY: Final = 1.0
_SCRAPES: Final = 5
_MEGABYTE: Final = 1e6
# Megabytes and seconds of the page of 200 companies, and times the p99 without scrapes.
_QUIET: Final = (2.0, 0.3)
_BUSY: Final = (10.0, 1.5)
_P99: Final = 3.0


class _Scraped(NamedTuple):
    """A running worker whose page is asked for, and a connection to publish on."""

    process: Worker
    system: SystemUnderTest
    to: EventPublisher


async def measure(section: Section) -> list[Line]:
    """Each round: the page while all are quiet and when all had events, then events with and without scrapes."""
    count, runs = section.options.scraped, section.runs
    place = await section.env.place("Scraped", companies=count)
    for _ in range(section.options.runs):
        try:
            async with _started(section, place) as scraped:
                await _round(section, place, scraped)
        except BenchError as error:
            for line in ("quiet", "busy", "alone", "scraped"):
                runs.fail("page", line, str(error))
    return list(_lines(section, count))


@asynccontextmanager
async def _started(section: Section, place: Place) -> AsyncIterator[_Scraped]:
    process = launch(section.env, place, section.folder)
    try:
        # Each company has a schema and three consumers to be looked at.
        await asyncio.to_thread(process.wait_ready, 60 + len(place.companies))
        async with publisher(section.env.broker.url) as to:
            yield _Scraped(process, under_test(process, place), to)
        await asyncio.to_thread(process.stop)
    except WorkerError as error:
        raise BenchError(str(error)) from error
    finally:
        process.kill()


async def _round(section: Section, place: Place, scraped: _Scraped) -> None:
    runs = section.runs
    await runs.add("page", "quiet", _page(scraped.process))
    author = Author(place.companies)
    await flood(scraped.to, _some_of_everything(author, len(place.companies)))
    await scraped.system.drained(section.env, "realtime")
    await runs.add("page", "busy", _page(scraped.process))
    some = Author(place.companies[:_PACED])
    await flood(scraped.to, map(some.message, range(WARM_UP)))
    await scraped.system.drained(section.env, "realtime")
    await runs.add("page", "alone", _pace(section, place, scraped))
    scraping = asyncio.create_task(_scrape_all_the_while(scraped.process))
    await runs.add("page", "scraped", _pace(section, place, scraped))
    scraping.cancel()
    with suppress(asyncio.CancelledError):
        await scraping
    await section.env.purge(letters=True)


def _some_of_everything(author: Author, companies: int) -> Iterator[Event]:
    """For each company: a message of a new phone, another one with its status, a chat, and an event that is none."""
    for number in range(companies):
        company = author.account(number).company
        message = author.message(number)
        yield from (
            author.from_new_phone(number),
            message,
            author.update(number, message),
            author.chat(number),
        )
        yield Event(Publication(0, f"v1.chats.upsert.{company}", b"{", {}, "v1.chats.upsert", ()), ())


async def _page(process: Worker) -> Run:
    """Bytes of the page, and seconds until all of it has come: compressed, as Prometheus asks for it, and plain."""
    size = await asyncio.to_thread(_fetch, process, "identity")
    seconds: dict[str, list[float]] = {"gzip": [], "identity": []}
    for _, coding in itertools.product(range(_SCRAPES), seconds):
        begun = time.perf_counter()
        await asyncio.to_thread(_fetch, process, coding)
        seconds[coding].append(time.perf_counter() - begun)
    packed = await asyncio.to_thread(_fetch, process, "gzip")
    return {
        "page_mb": size / _MEGABYTE,
        "packed_mb": packed / _MEGABYTE,
        "page_s": min(seconds["gzip"]),
        "plain_s": min(seconds["identity"]),
    }


async def _scrape_all_the_while(process: Worker) -> None:
    while True:
        await asyncio.to_thread(_fetch, process, "gzip")
        await asyncio.sleep(_SCRAPE_EVERY)


def _fetch(process: Worker, coding: str) -> int:
    """Bytes that come over the wire."""
    asked = urllib.request.Request(f"{process.url}/metrics", headers={"Accept-Encoding": coding})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return len(answer.read())


async def _pace(section: Section, place: Place, scraped: _Scraped) -> Run:
    """Milliseconds from publishing to commit."""
    author = Author(place.companies[:_PACED])
    begun = time.time()
    deadline = time.monotonic() + section.options.seconds
    messages = map(author.message, itertools.count())
    left = await steadily(scraped.to, messages, RATE, lambda: time.monotonic() < deadline)
    await scraped.system.drained(section.env, "realtime")
    load = Load("realtime", "realtime", author.agents, [author.message(0)])
    waits = latencies(await place.commits(place.schemas[:_PACED], load, begun), left)
    return {"rows": len(waits), "p50": percentile(waits, 0.5), "p99": percentile(waits, 0.99)}


def _lines(section: Section, count: int) -> Iterator[Line]:
    compared = section.runs.compared
    for name, (megabytes, seconds) in (("quiet", _QUIET), ("busy", _BUSY)):
        title, key = f"page of {count} {name} companies", ("page", name)
        yield compared("metrics", title, "page_mb", key, None, "MB", megabytes)
        yield compared("metrics", f"{title}, until it has come", "page_s", key, None, "s", seconds)
    keys = (("page", "scraped"), ("page", "alone"))
    yield compared("metrics", "p99 beside a scrape a second", "p99", *keys, "times", _P99)
