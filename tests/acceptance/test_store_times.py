"""Store times that step back, as when a node with a slower clock becomes the stream's leader: the later event wins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from testkit.servers import NatsServer
from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, CompanyProbe, comes_to
from tests.acceptance.conftest import Launch
from tests.servers.proxy import Proxy
from tests.slow_clock import SlowClock

# More than the second after which a step is told in the log, less than the ten that are bridged.
_BEHIND: Final = 5.0
_ROWS: Final = 20
_DELAYS: Final = {"NATS_DLQBASEDELAYMINUTES": "0.01", "NATS_DLQMAXDELAYMINUTES": "0.02"}


@pytest.fixture
def clock() -> SlowClock:
    """The clock of NATS as the worker sees it."""
    return SlowClock(_BEHIND)


@pytest.fixture
async def worker(
    nats_server: NatsServer, launch: Launch, clock: SlowClock, probe: CompanyProbe
) -> AsyncIterator[Worker]:
    """A worker of the probe's company that reaches NATS through the clock."""
    async with Proxy(nats_server.port, clock.rewrite) as proxy:
        worker = launch(probe.company, ready=False, nats_url=f"nats://127.0.0.1:{proxy.port}", also=_DELAYS)
        await asyncio.to_thread(worker.wait_ready)
        yield worker


def _pair(number: int) -> dict[str, str]:
    phone = f"62815{number:07}"
    return {"chat_id": f"a_{phone}", "agent_id": f"a{number}"}


async def _values(probe: CompanyProbe, word: str, unread: int) -> None:
    """Events about the same rows that say `word` each."""
    numbers = range(_ROWS)
    await probe.publish_many(
        "v1.messages.upsert",
        [builders.message(message_id=f"M{n}", status=word, message_text=word, **_pair(n)) for n in numbers],
    )
    await probe.publish_many(
        "v1.chats.upsert",
        [builders.chat(push_name=word, unread_count=unread, **_pair(n)) for n in numbers],
    )
    await probe.publish_many(
        "v1.contacts.upsert", [builders.contact(push_name=word, **_pair(n)) for n in numbers]
    )
    await probe.publish_many(
        "v1.connection.update", [builders.connection(agent_id=f"a{n}", status=word) for n in numbers]
    )
    await probe.settled()


async def _distinct(probe: CompanyProbe, *columns: str) -> dict[str, list[Any]]:
    """The values that rows have in `table.column`."""
    found = {}
    for column in columns:
        table, name = column.split(".")
        found[column] = [row[name] for row in await probe.rows(table)]
    return found


async def test_the_later_event_wins_when_store_times_step_back(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    await _values(probe, "earlier", 7)
    clock.set_back()
    await _values(probe, "later", 3)
    columns = (
        "messages.status",
        "messages.message_text",
        "chats.push_name",
        "contacts.push_name",
        "agents.status",
    )
    assert await _distinct(probe, *columns, "chats.unread_count") == {
        **dict.fromkeys(columns, ["later"] * _ROWS),
        "chats.unread_count": [3] * _ROWS,
    }


async def test_an_unread_step_counts_when_store_times_step_back(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    await probe.publish("v1.chats.upsert", builders.chat(unread_count=5))
    await probe.settled()
    clock.set_back()
    await probe.publish("v1.chats.update", builders.chat_update(unread_count=1))
    await probe.settled()
    assert [row["unread_count"] for row in await probe.rows("chats")] == [6]


async def test_a_later_count_overtakes_the_steps_when_store_times_step_back(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    await probe.publish("v1.chats.upsert", builders.chat(unread_count=5))
    await probe.publish("v1.chats.update", builders.chat_update(unread_count=1))
    await probe.settled()
    clock.set_back()
    await probe.publish("v1.chats.update", builders.chat_update(unread_count=0))
    await probe.settled()
    assert [row["unread_count"] for row in await probe.rows("chats")] == [0]
    assert await probe.count("chat_steps") == 0


async def test_the_first_message_stays_the_first_when_store_times_step_back(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    await probe.publish("v1.messages.upsert", builders.message(message_id="first"))
    await probe.settled()
    clock.set_back()
    campaign = {"is_campaign": True, "origin": "ads", "tags": "ig", "assigned_to": ""}
    await probe.publish("v1.messages.upsert", builders.message(message_id="second", campaign=campaign))
    await probe.settled()
    [contact], [log] = await probe.rows("contacts"), await probe.rows("onboarding_log")
    assert (contact["first_message_id"], contact["origin"]) == ("first", "DirectChat")
    assert log["message_id"] == "first"


async def test_a_replay_stays_the_older_event_when_store_times_step_back_before_it(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    await probe.publish("v1.messages.upsert", builders.message(status="sent", message_url=""))
    await probe.settled()
    await probe.trip("messages", "NEW.status = 'delivered'", "22001")
    await probe.publish(
        "v1.messages.update", builders.message_update(status="delivered", message_url="https://example.org/1")
    )
    await comes_to(1, probe.letters)
    clock.set_back()
    await probe.publish("v1.messages.update", builders.message_update(status="read"))
    await probe.settled()
    await probe.untrip("messages")
    await probe.settled(DLQ_STREAM)
    [row] = await probe.rows("messages")
    assert (row["status"], row["message_url"]) == ("read", "https://example.org/1")
    assert await probe.count("exhausted_events") == 0


@pytest.mark.rule("VER-10")
async def test_store_times_that_step_back_are_counted_and_told(
    worker: Worker, clock: SlowClock, probe: CompanyProbe
) -> None:
    labels = {"company_id": probe.company, "consumer_type": "realtime"}

    def counted() -> tuple[float, float]:
        scrape = worker.scrape()
        return (
            scrape.value("daisi_store_time_steps_back_total", **labels),
            scrape.value("daisi_store_time_step_back_seconds_total", **labels),
        )

    for number in range(3):
        await probe.publish("v1.messages.upsert", builders.message(message_id=f"M{number}"))
    await probe.settled()
    assert await asyncio.to_thread(counted) == (0, 0)
    clock.set_back()
    for number in range(3):
        await probe.publish("v1.messages.upsert", builders.message(message_id=f"N{number}"))
    await probe.settled()
    steps, seconds = await asyncio.to_thread(counted)
    assert steps == 1
    assert 0 < seconds <= _BEHIND
    loud = seconds > 1
    told = [line for line in worker.lines() if "clocks of the NATS nodes" in json_text(line)]
    assert len(told) == loud


def json_text(line: dict[str, Any]) -> str:
    """All of a log line as one text."""
    return " ".join(map(str, line.values()))
