"""One worker for every company: companies come, stand still and go while it runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol
from uuid import uuid4

import asyncpg
import pytest
from nats.aio.client import Client

from testkit.servers import NatsServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import REALTIME_STREAM, CompanyProbe, comes_to, comes_true
from tests.acceptance.conftest import Launch, visited

UPSERT = "v1.messages.upsert"
Visit = Callable[[str], Awaitable[CompanyProbe]]


class StartFleet(Protocol):
    """Starts a worker for every company of a test."""

    def __call__(self, **settings: str) -> Worker: ...


@pytest.fixture(scope="module")
def nats_of_fleets() -> Iterator[NatsServer]:
    """A NATS of this module's own: a fleet hears of the events of every company there is."""
    with NatsServer() as server:
        yield server


@pytest.fixture
async def nc(nats_of_fleets: NatsServer) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(nats_of_fleets.url)
    yield client
    await client.close()


@pytest.fixture
def prefix() -> str:
    """How the companies of a test begin: the others of the database are not its fleet's."""
    return f"Kopi{uuid4().hex[:12].upper()}"


@pytest.fixture
def fleet(launch: Launch, nats_of_fleets: NatsServer, prefix: str) -> StartFleet:
    def start(**settings: str) -> Worker:
        ours = {
            "COMPANY_ALLOW": f"{prefix}*,{prefix.lower()}*",
            "NATS_FLEET_DURABLE": f"wa_fleet_{prefix}_",
            **settings,
        }
        return launch("*", nats_url=nats_of_fleets.url, also=ours)

    return start


@pytest.fixture
async def visit(nc: Client, postgres_dsn: str) -> AsyncIterator[Visit]:
    """Makes a probe of a company."""
    async with AsyncExitStack() as stack:

        async def visit(company: str) -> CompanyProbe:
            return await stack.enter_async_context(visited(company, nc, postgres_dsn))

        yield visit


async def stored(probe: CompanyProbe, count: int) -> None:
    """Wait until a company has so many messages, and its schema for them."""

    async def messages() -> int:
        try:
            return await probe.count("messages")
        except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
            return -1

    await comes_to(count, messages)


def events(count: int, first: int = 0) -> list[Any]:
    return [builders.message(message_id=f"M{number}") for number in range(first, first + count)]


def troubles(worker: Worker) -> dict[str, str]:
    """What `/ready` lists of companies; fails unless the worker is ready."""
    answer = worker.ready()
    assert answer["status"] == "READY", answer
    found: dict[str, str] = answer["details"].get("companies", {})
    return found


def first_on_page(worker: Worker) -> dict[str, Any]:
    """The company that the status page lists first."""
    companies: list[dict[str, Any]] = json.loads(worker.page("/status.json")[1])["companies"]
    return companies[0]


@pytest.mark.rule("FLT-6")
async def test_a_new_company_is_served_by_its_first_event(
    fleet: StartFleet, visit: Visit, prefix: str
) -> None:
    worker = fleet()
    for name in ("One", "Two"):
        probe = await visit(prefix + name)
        await probe.publish(UPSERT, builders.message())
        await stored(probe, 1)
    labels = {"event_type": UPSERT, "company_id": f"{prefix}Two", "consumer_type": "realtime"}
    await comes_true(
        lambda: worker.scrape().value("message_event_service_events_processed_total", **labels) == 1
    )


@pytest.mark.rule("FLT-6")
async def test_two_replicas_that_meet_a_new_company_at_once_store_each_event_once(
    fleet: StartFleet, visit: Visit, prefix: str
) -> None:
    fleet()
    fleet()
    probes = [await visit(f"{prefix}{number}") for number in range(4)]
    await asyncio.gather(*(probe.publish_many(UPSERT, events(50)) for probe in probes))
    for probe in probes:
        await stored(probe, 50)
        assert await probe.count("message_keys") == 50
        assert await probe.letters() == 0


@pytest.mark.rule("FLT-3", "FLT-8")
async def test_a_company_whose_table_is_locked_holds_up_no_other(
    fleet: StartFleet, visit: Visit, prefix: str
) -> None:
    worker = fleet()
    stuck, other = await visit(f"{prefix}Stuck"), await visit(f"{prefix}Other")
    for probe in (stuck, other):
        await probe.publish(UPSERT, builders.message(message_id="M0"))
        await stored(probe, 1)
    async with stuck.database.transaction():
        await stuck.execute("LOCK TABLE {schema}.messages IN ACCESS EXCLUSIVE MODE")
        await stuck.publish_many(UPSERT, events(100, 1))
        for number in range(1, 6):
            await other.publish(UPSERT, builders.message(message_id=f"M{number}"))
            await stored(other, number + 1)
        await comes_true(lambda: f"storing {stuck.company}" in troubles(worker))
        await comes_true(lambda: first_on_page(worker)["company"] == stuck.company)
        assert first_on_page(worker)["problem"]
    await stored(stuck, 101)
    await comes_true(lambda: not troubles(worker))
    assert await stuck.letters() == 0


@pytest.mark.rule("FLT-7")
async def test_a_company_that_differs_in_case_only_waits_and_the_first_is_served(
    fleet: StartFleet, visit: Visit, prefix: str
) -> None:
    worker = fleet()
    first, second = await visit(f"{prefix}One"), await visit(f"{prefix}ONE")
    await first.publish(UPSERT, builders.message())
    await stored(first, 1)
    await second.publish(UPSERT, builders.message(message_id="other"))
    await comes_true(lambda: any(second.company in text for text in troubles(worker).values()))
    await first.publish(UPSERT, builders.message(message_id="more"))
    await stored(first, 2)
    assert worker.running


@pytest.mark.rule("FLT-5")
async def test_an_excluded_companys_events_are_left_in_the_stream_and_counted(
    fleet: StartFleet, visit: Visit, prefix: str
) -> None:
    worker = fleet(COMPANY_EXCLUDE=f"{prefix}Big*")
    big, small = await visit(f"{prefix}BigCorp"), await visit(f"{prefix}Small")
    await big.publish(UPSERT, builders.message())
    await small.publish(UPSERT, builders.message())
    await stored(small, 1)
    await comes_true(lambda: worker.scrape().value("daisi_fleet_refused_events_total") >= 1)
    assert await big.database.fetchval("SELECT to_regnamespace($1)", big.tenant.schema) is None
    info = await big.js.stream_info(REALTIME_STREAM, subjects_filter=big.tenant.subject(UPSERT))
    assert info.state.subjects == {big.tenant.subject(UPSERT): 1}


@pytest.mark.rule("FLT-1")
async def test_nothing_is_lost_on_the_way_to_a_fleet_and_back(
    fleet: StartFleet, launch: Launch, nats_of_fleets: NatsServer, visit: Visit, prefix: str
) -> None:
    one, two = await visit(f"{prefix}One"), await visit(f"{prefix}Two")
    own = launch(one.company, two.company, nats_url=nats_of_fleets.url)
    for probe in (one, two):
        await probe.publish_many(UPSERT, events(20))
        await stored(probe, 20)
    own.stop()
    for probe in (one, two):
        await probe.publish_many(UPSERT, events(20, 20))
    shared = fleet()
    for probe in (one, two):
        await stored(probe, 40)
    text = "\n".join(str(line["msg"]) for line in shared.lines())
    assert "take over from wa_realtime_" in text
    shared.stop()
    for spec in ("wa_realtime_", "wa_history_"):
        stream = REALTIME_STREAM if spec == "wa_realtime_" else "wa_history_events_stream"
        await one.js.delete_consumer(stream, spec + one.company)
    await one.publish_many(UPSERT, events(20, 40))
    again = launch(
        one.company, nats_url=nats_of_fleets.url, also={"NATS_FLEET_DURABLE": f"wa_fleet_{prefix}_"}
    )
    await stored(one, 60)
    assert "take over from wa_fleet_" in "\n".join(str(line["msg"]) for line in again.lines())
    assert (await one.letters(), await two.letters()) == (0, 0)
