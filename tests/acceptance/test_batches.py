"""How many deliveries a worker takes at once is a setting."""

from __future__ import annotations

from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
from nats.aio.client import Client

from tests import builders
from tests.acceptance.company_probe import HISTORY_STREAM, REALTIME_STREAM, CompanyProbe
from tests.acceptance.conftest import Launch, visited

_EVENTS = 20
# Both are upper bounds of the metric's buckets.
_REALTIME = 5
_HISTORICAL = 2


@pytest.mark.rule("CON-8")
async def test_no_batch_is_larger_than_its_setting_says(launch: Launch, probe: CompanyProbe) -> None:
    launch(probe.company).stop()  # it made the streams
    chats = [builders.chat(chat_id=f"C{number}") for number in range(_EVENTS)]
    await probe.publish_many("v1.chats.upsert", chats)
    await probe.publish_many("v1.history.chats", [builders.history_chats(chat) for chat in chats])

    worker = launch(
        probe.company,
        NATS_REALTIME_BATCHSIZE=str(_REALTIME),
        NATS_HISTORICAL_BATCHSIZE=str(_HISTORICAL),
    )
    await probe.settled(REALTIME_STREAM)
    await probe.settled(HISTORY_STREAM)

    metrics = worker.scrape()
    for consumer, size in (("realtime", _REALTIME), ("historical", _HISTORICAL)):
        labels = {"company_id": probe.company, "consumer_type": consumer}
        batches = metrics.value("daisi_source_batch_messages_count", **labels)
        within = metrics.value("daisi_source_batch_messages_bucket", **labels, le=f"{size:.1f}")
        assert metrics.value("daisi_source_batch_messages_sum", **labels) == _EVENTS
        assert batches == within


async def test_a_backlog_of_large_events_of_many_companies_does_not_cut_the_worker_off(
    launch: Launch, nc: Client, postgres_dsn: str
) -> None:
    """NATS cuts a client off that 64 MB wait for; what it was sent would come again after the ack wait, and again."""
    companies = [f"Kopi{uuid4().hex[:12]}" for _ in range(10)]
    launch(*companies).stop()  # it made the streams
    large = [
        builders.chat(chat_id=f"C{number}", last_message={"text": "x" * 250_000}) for number in range(40)
    ]
    async with AsyncExitStack() as stack:
        probes = [await stack.enter_async_context(visited(name, nc, postgres_dsn)) for name in companies]
        for probe in probes:
            await probe.publish_many("v1.chats.upsert", large)

        worker = launch(*companies)
        for probe in probes:
            await probe.settled()

        assert [await probe.deliveries() for probe in probes] == [len(large)] * len(probes)
        assert [await probe.count("chats") for probe in probes] == [len(large)] * len(probes)
    assert not [line for line in worker.lines() if "is lost" in line["msg"]]
