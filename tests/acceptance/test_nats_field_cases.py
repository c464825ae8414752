"""What NATS refuses, limits or takes away while a worker runs: waited out, named on `/ready`, paid for by no event."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import nats
import pytest

from testkit.worker import Worker, environment
from tests import builders
from tests.acceptance.company_probe import comes_true
from tests.acceptance.conftest import Launch, visited
from tests.nats_jwt import Realm
from tests.nats_servers import ConfigurableNats, domain_pair, reload, rights
from tests.programs import command
from tests.sources import connected

EVENTS = 98
# The ack wait is the time in which an event that is not acknowledged comes again.
SOON = {"NATS_REALTIME_ACKWAIT": "1s", "NATS_REALTIME_MAXDELIVER": "2", "NATS_REALTIME_BATCHSIZE": "10"}


def problem(worker: Worker) -> str:
    """What /ready says of NATS, and of the start; nothing before it answers."""
    status, text = worker.page("/ready")
    details = json.loads(text)["details"] if status else {}
    return f"{details.get('nats', '')} {details.get('worker', '')}"


@pytest.mark.rule("CON-11")
async def test_denied_acks_make_no_event_a_dead_letter_however_long(
    launch: Launch, company: str, postgres_dsn: str
) -> None:
    with ConfigurableNats(settings=rights()) as server:
        worker = launch(company, nats_url=server.at("worker:w"), also=SOON)
        observer = await nats.connect(server.at("tests:t"))
        async with visited(company, observer, postgres_dsn) as probe:
            reload(server, rights(without=["ack"]))
            for number in range(EVENTS):
                await probe.publish("v1.messages.upsert", builders.message(message_id=f"m{number}"))
            await asyncio.to_thread(worker.wait_page, "/ready", 503)
            await comes_true(lambda: 'Permissions Violation for Publish to "$JS.ACK.' in problem(worker))
            # More than all deliveries of an event that is never acknowledged would take.
            await asyncio.sleep(6)
            assert await probe.letters() == 0
            assert worker.page("/ready")[0] == 503

            reload(server, rights())
            await probe.settled()
            await probe.holds("messages", EVENTS)
            assert await probe.letters() == 0
            await asyncio.to_thread(worker.wait_ready)
        await observer.close()


@pytest.mark.rule("CON-11")
async def test_a_worker_that_starts_with_denied_acks_touches_no_event(
    launch: Launch, company: str, postgres_dsn: str
) -> None:
    with ConfigurableNats(settings=rights(without=["ack"])) as server:
        worker = launch(company, ready=False, nats_url=server.at("worker:w"), also=SOON)
        await comes_true(lambda: 'Permissions Violation for Publish to "$JS.ACK.' in problem(worker))
        observer = await nats.connect(server.at("tests:t"))
        async with visited(company, observer, postgres_dsn) as probe:
            await probe.publish("v1.messages.upsert", builders.message())
            await asyncio.sleep(2)
            assert await probe.deliveries() == 0
            reload(server, rights())
            await probe.holds("messages", 1)
            await asyncio.to_thread(worker.wait_ready)
        await observer.close()


async def test_rights_that_the_start_misses_are_named_by_ready_by_topology_and_in_the_log(
    launch: Launch, company: str
) -> None:
    # Three consumers are refused side by side; the first answer to come is the one that is named.
    missing = 'Permissions Violation for Publish to "$JS.API.CONSUMER.CREATE.'
    with ConfigurableNats(settings=rights(denied=["$JS.API.CONSUMER.CREATE.>"])) as server:
        worker = launch(company, ready=False, nats_url=server.at("worker:w"))
        await comes_true(lambda: missing in problem(worker))
        assert missing in worker.log.read_text().replace('\\"', '"')
        env = environment([company], server.at("worker:w"), "postgresql://nobody@127.0.0.1:1/none")
        shown = await asyncio.to_thread(command, "topology", "--apply", env=env)
        assert shown.returncode == 1
        assert missing in shown.stderr
        reload(server, rights())
        await asyncio.to_thread(worker.wait_ready)


async def test_dead_letters_that_may_not_be_published_are_named_and_kept(
    launch: Launch, company: str, postgres_dsn: str
) -> None:
    with ConfigurableNats(settings=rights()) as server:
        worker = launch(company, nats_url=server.at("worker:w"))
        reload(server, rights(without=["dlq"]))
        observer = await nats.connect(server.at("tests:t"))
        async with visited(company, observer, postgres_dsn) as probe:
            await probe.publish("v1.chats.upsert", builders.chat(chat_id=""))
            await comes_true(
                lambda: f'Permissions Violation for Publish to "v1.dlq.{company}"' in problem(worker)
            )
            reload(server, rights())
            await asyncio.to_thread(worker.wait_ready)
            await comes_true(lambda: worker.scrape().value("daisi_ready") >= 1)
            await probe.settled()
            assert await probe.letters() == 1
        await observer.close()


async def test_a_token_that_expires_is_renewed_without_a_restart(
    launch: Launch, company: str, tmp_path: Path
) -> None:
    realm, creds = Realm(), tmp_path / "worker.creds"
    realm.write_user(creds, expires=12)
    with ConfigurableNats(settings=realm.settings()) as server:
        worker = launch(company, ready=False, nats_url=server.url, NATS_CREDS=str(creds))

        def is_ready() -> bool:
            # On a busy machine a start may take longer than one token lives.
            realm.write_user(creds, expires=12)
            return worker.page("/ready")[0] == 200

        await comes_true(is_ready)
        await comes_true(lambda: "refuses our credentials" in problem(worker))
        assert "NATS_CREDS" in problem(worker)
        realm.write_user(creds)
        await asyncio.to_thread(worker.wait_ready)
        assert worker.running


async def test_a_worker_at_a_leaf_node_serves_the_domain_of_the_hub(
    launch: Launch, company: str, postgres_dsn: str, tmp_path: Path
) -> None:
    hub_settings, leaf_settings = domain_pair(tmp_path)
    with ConfigurableNats(settings=hub_settings) as hub, ConfigurableNats(settings=leaf_settings) as leaf:
        launch(
            company,
            nats_url=leaf.url,
            NATS_JETSTREAM_DOMAIN="hub",
            NATS_DLQBASEDELAYMINUTES="0.001",
            NATS_DLQMAXDELAYMINUTES="0.001",
        )
        gateway = await nats.connect(hub.url)
        async with visited(company, gateway, postgres_dsn) as probe:
            await probe.publish("v1.messages.upsert", builders.message())
            await probe.publish("v1.chats.upsert", builders.chat(chat_id=""))
            await probe.holds("messages", 1)
            await probe.holds("exhausted_events", 1)
            await probe.settled()
        await gateway.close()
        async with connected(leaf.url) as broker:
            assert not (await broker.api("STREAM.NAMES"))["streams"]
