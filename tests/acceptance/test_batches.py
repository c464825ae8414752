"""How many deliveries a worker takes at once is a setting (design 4)."""

from __future__ import annotations

from contextlib import AsyncExitStack
from uuid import uuid4

from nats.aio.client import Client

from testkit import builders
from tests.acceptance.conftest import Launch, visited
from tests.acceptance.site import HISTORY_STREAM, REALTIME_STREAM, Site

_EVENTS = 20
# Both are upper bounds of the metric's buckets.
_REALTIME = 5
_HISTORICAL = 2


async def test_no_batch_is_larger_than_its_setting_says(launch: Launch, site: Site) -> None:
    launch(site.company).stop()  # it made the streams
    chats = [builders.chat(chat_id=f"C{number}") for number in range(_EVENTS)]
    await site.publish_many("v1.chats.upsert", chats)
    await site.publish_many("v1.history.chats", [builders.history_chats(chat) for chat in chats])

    worker = launch(
        site.company,
        NATS_REALTIME_BATCHSIZE=str(_REALTIME),
        NATS_HISTORICAL_BATCHSIZE=str(_HISTORICAL),
    )
    await site.settled(REALTIME_STREAM)
    await site.settled(HISTORY_STREAM)

    metrics = worker.scrape()
    for consumer, size in (("realtime", _REALTIME), ("historical", _HISTORICAL)):
        labels = {"company_id": site.company, "consumer_type": consumer}
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
        sites = [await stack.enter_async_context(visited(name, nc, postgres_dsn)) for name in companies]
        for site in sites:
            await site.publish_many("v1.chats.upsert", large)

        worker = launch(*companies)
        for site in sites:
            await site.settled()

        assert [await site.deliveries() for site in sites] == [len(large)] * len(sites)
        assert [await site.count("chats") for site in sites] == [len(large)] * len(sites)
    assert not [line for line in worker.lines() if "is lost" in line["msg"]]
