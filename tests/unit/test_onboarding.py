"""The onboarding agent with tables in memory: outcomes, the pool, faults."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from agents.batch_writer import BatchWriter
from agents.decode import decode, receive
from agents.onboarding import Onboarding
from agents.onboarding_queue import SHARE, KnownPairs
from agents.received_event import ReceivedEvent
from events import errors
from events.backoff import Backoff
from events.errors import EventError, Rejected
from events.subjects import Tenant
from tables.attribution import CampaignAttribution, Incoming
from tables.contact_index import clean_phone
from tables.errors import (
    DatabaseError,
    DataError,
    QueryTimeout,
    SerializationFailure,
    StorageError,
    Unavailable,
)
from tables.last_writer_wins import EventStamp, Version
from tables.onboarding import Outcome, Pair
from tables.tenant import TenantTables
from tests import builders
from tests.unit.fakes import LIMITS, FakeDelivery, RecordingMeter

TENANT = Tenant(builders.COMPANY)
POLICY = LIMITS["realtime"]
Results = list[EventError | None]


class Tables:
    """Remembers pairs; `trouble` may raise for a batch."""

    def __init__(self) -> None:
        self.log: dict[Pair, Version | None] = {}
        self.batches: list[list[Incoming]] = []
        self.trouble: Callable[[Sequence[Incoming]], Awaitable[None]] | None = None
        self.probe_error: Exception | None = None

    @property
    def onboarding(self) -> Tables:
        return self

    @property
    def probe(self) -> Tables:
        return self

    def of(self, _: Tenant) -> TenantTables:
        return cast(TenantTables, self)

    async def store(self, like: Incoming, company: str) -> None:
        """What a probe comes to."""
        if self.probe_error is not None:
            raise self.probe_error

    async def known(self, company: str, pairs: Iterable[Pair]) -> dict[Pair, Version | None]:
        return {pair: self.log[pair] for pair in pairs if pair in self.log}

    async def onboard(self, company: str, messages: Sequence[Incoming]) -> list[Outcome]:
        if self.trouble is not None:
            await self.trouble(messages)
        self.batches.append(list(messages))
        outcomes = []
        for message in messages:
            outcomes.append(Outcome(message.pair not in self.log, True))
            self.log.setdefault(message.pair, message.stamp.version)
        return outcomes


class Meter(RecordingMeter):
    """Counts what the agent says."""

    def __init__(self) -> None:
        super().__init__()
        self.submitted = 0
        self.ended: Counter[str] = Counter()
        self.seconds: list[float] = []

    def onboarding_submitted(self, company: str, count: int) -> None:
        self.submitted += count

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        self.ended[status] += 1
        self.seconds.append(seconds)


class NoBackoff(Backoff):
    """Waits for nothing, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __call__(self) -> NoBackoff:
        return self

    async def wait(self) -> None:
        self.waits += 1
        await asyncio.sleep(0)


class Health:
    """Keeps what it was told last."""

    state = ""

    def paused(self, waiter: str, reason: str) -> None:
        self.state = f"{waiter}: {reason}"

    def resumed(self, waiter: str) -> None:
        self.state = ""


class FakeSettlement:
    """Keeps the outcomes of the events that were settled together, for who waits for them."""

    def __init__(self) -> None:
        self.promised: dict[int, asyncio.Future[Results]] = {}

    async def settle(self, events: Sequence[ReceivedEvent]) -> None:
        # Raises when it is called twice.
        self.promised[id(events[0])].set_result([event.error for event in events])


class Agent:
    """The onboarding agent, which reads a queue."""

    def __init__(self, **settings: object) -> None:
        self.tables = Tables()
        self.meter = Meter()
        self.pauses = NoBackoff()
        self.channel: asyncio.Queue[Sequence[ReceivedEvent]] = asyncio.Queue()
        self.handled = 0
        self.health = Health()
        self.settlement = FakeSettlement()
        self.onboarding = Onboarding(
            tables=self.tables.of,
            writer=BatchWriter("onboarding", self.health, backoff=self.pauses),
            settlement=self.settlement,  # type: ignore[arg-type]
            meter=self.meter,
            send=self.channel.put,
            **settings,  # type: ignore[arg-type]
        )

    async def _stream(self) -> AsyncIterator[Sequence[ReceivedEvent]]:
        while True:
            yield await self.channel.get()

    async def _run(self) -> None:
        async for count in self.onboarding.run(self._stream()):
            self.handled += count

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        agent = asyncio.create_task(self._run())
        try:
            yield
        finally:
            agent.cancel()
            await asyncio.wait([agent])

    async def submit(self, *events: ReceivedEvent) -> asyncio.Future[Results]:
        """Submit a batch; the future has the outcomes of its events when they are settled."""
        outcome: asyncio.Future[Results] = asyncio.get_running_loop().create_future()
        self.settlement.promised[id(events[0])] = outcome
        await self.onboarding.submit(events)
        return outcome

    async def do(self, *events: ReceivedEvent) -> Results:
        async with asyncio.timeout(30):
            return await (await self.submit(*events))


def received(delivery: FakeDelivery, tenant: Tenant = TENANT) -> ReceivedEvent:
    return receive(tenant, delivery, POLICY, "2026-11-24T07:15:30Z")


def task(
    number: int = 1,
    phone: str = "62811",
    agent: str = "agent",
    campaign: CampaignAttribution | None = None,
    tenant: Tenant = TENANT,
    data: bytes | None = None,
) -> ReceivedEvent:
    event = received(FakeDelivery(sequence=number, data=data), tenant)
    event.incoming = Incoming(
        agent,
        clean_phone(phone),
        f"m{number}",
        1_795_500_000,
        f"chat-{phone}",
        f"{phone}@s.whatsapp.net",
        campaign,
        EventStamp(Version(number, number), "{}"),
    )
    return event


def incoming(**changes: object) -> Incoming | None:
    event = received(FakeDelivery(payload=builders.message(**changes)))
    decode(event, event.delivery.data, itertools.count())
    return event.incoming


@pytest.mark.rule("ONB-1")
@pytest.mark.parametrize(
    ("flow", "phone", "jid", "wanted"),
    [
        ("IN", "62811", "62811@s.whatsapp.net", True),
        ("IN", "62811", "120363@g.us", True),
        ("OUT", "62811", "62811@s.whatsapp.net", False),
        ("IN", "", "62811@s.whatsapp.net", False),
        ("IN", "62811", "status@broadcast", False),
        ("IN", "62811", "1234@broadcast", False),
        ("IN", "62811", "1234@newsletter", False),
    ],
)
def test_only_incoming_messages_of_people_and_groups_are_tasks(
    flow: str, phone: str, jid: str, wanted: bool
) -> None:
    assert (incoming(flow=flow, from_phone=phone, jid=jid) is not None) is wanted


class TestOutcomes:
    @pytest.mark.rule("ONB-13")
    async def test_a_new_phone_is_success_created_and_a_known_one_success_exists(self) -> None:
        agent = Agent()
        async with agent.running():
            assert await agent.do(task(1), task(2, "62812")) == [None, None]
            assert await agent.do(task(3)) == [None]
        assert agent.meter.ended == {"success_created": 2, "success_exists": 1}
        assert agent.meter.submitted == 3
        assert all(seconds >= 0 for seconds in agent.meter.seconds)

    async def test_a_job_is_stored_as_one_batch_with_cleaned_phones(self) -> None:
        agent = Agent()
        async with agent.running():
            await agent.do(task(1, "+62 (811)"), task(2, "62812"))
        [batch] = agent.tables.batches
        assert [message.phone for message in batch] == ["62811", "62812"]

    @pytest.mark.rule("ONB-8")
    @pytest.mark.parametrize(
        ("campaign", "attribution"),
        [
            (None, None),
            ({"is_campaign": False, "tags": "a"}, None),
            ({"tags": "a"}, None),
            ({"is_campaign": True, "tags": "a", "origin": "ads"}, CampaignAttribution("a", "", "ads")),
        ],
    )
    def test_a_campaign_counts_only_if_it_says_so(
        self, campaign: dict[str, object] | None, attribution: CampaignAttribution | None
    ) -> None:
        found = incoming(campaign=campaign)
        assert found is not None
        assert found.campaign == attribution

    @pytest.mark.rule("ONB-15")
    async def test_no_phone_after_cleaning_or_no_agent_is_error_other_and_holds_nothing_back(self) -> None:
        agent = Agent()
        async with agent.running():
            assert await agent.do(task(1, "+ ()"), task(2, agent=""), task(3)) == [None, None, None]
        assert agent.meter.ended == {"error_other": 2, "success_created": 1}

    @pytest.mark.rule("ONB-14")
    async def test_a_data_error_dead_letters_the_guilty_message_alone(self) -> None:
        agent = Agent()
        agent.tables.trouble = refuses("62813", DataError("SQLSTATE 22001"))
        async with agent.running():
            results = await agent.do(*(task(n, f"6281{n}") for n in range(1, 8)))
        assert [type(error) for error in results] == [*[type(None)] * 2, Rejected, *[type(None)] * 4]
        assert agent.meter.ended == {"success_created": 6, "error_db": 1}

    async def test_a_failure_of_one_task_alone_is_retryable(self) -> None:
        agent = Agent()
        agent.tables.trouble = refuses("62811", DatabaseError("SQLSTATE XX000"))
        async with agent.running():
            [error] = await agent.do(task())
        assert isinstance(error, errors.DatabaseError)
        assert agent.meter.ended == {"error_db": 1}

    @pytest.mark.rule("ONB-15")
    async def test_an_unexpected_exception_is_error_other_for_its_message_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        agent = Agent()
        agent.tables.trouble = refuses("62812", ZeroDivisionError())
        async with agent.running():
            assert await agent.do(task(1), task(2, "62812"), task(3, "62813")) == [None, None, None]
        assert agent.meter.ended == {"success_created": 2, "error_other": 1}
        assert "unexpected exception" in caplog.text

    async def test_an_exception_while_settling_does_not_stop_the_agent(self) -> None:
        agent = Agent()
        outcome = await agent.submit(task())
        outcome.set_result([])  # a second result is an error
        async with agent.running():
            assert await agent.do(task(2, "62812")) == [None]

    async def test_a_replay_awaits_its_outcome_and_its_event_is_settled_by_who_replays(self) -> None:
        agent = Agent()
        agent.tables.trouble = refuses("62812", DataError("SQLSTATE 22001"))
        async with agent.running(), asyncio.timeout(30):
            sound, refused = task(), task(2, "62812")
            await agent.onboarding.replay(sound)
            await agent.onboarding.replay(refused)
        assert sound.error is None
        assert isinstance(refused.error, Rejected)
        assert agent.settlement.promised == {}

    async def test_a_cancelled_replay_does_not_stop_the_agent(self) -> None:
        agent, began, gate = Agent(), asyncio.Event(), asyncio.Event()

        async def wait(_: Sequence[Incoming]) -> None:
            began.set()
            await gate.wait()

        agent.tables.trouble = wait
        async with agent.running():
            replaying = asyncio.create_task(agent.onboarding.replay(task()))
            async with asyncio.timeout(30):
                await began.wait()
            replaying.cancel()
            await asyncio.wait([replaying])
            gate.set()
            assert await agent.do(task(2, "62812")) == [None]

    async def test_the_next_job_of_a_company_waits_while_events_of_one_cannot_be_settled(self) -> None:
        """Dead letters that no stream takes would otherwise pile up without a limit."""
        agent, gate = Agent(), asyncio.Event()
        settle = agent.settlement.settle

        async def wait(events: Sequence[ReceivedEvent]) -> None:
            await gate.wait()
            await settle(events)

        agent.settlement.settle = wait  # type: ignore[method-assign]
        async with agent.running():
            first, second = await agent.submit(task()), await agent.submit(task(2, "62812"))
            await until(lambda: agent.handled == 2 and agent.meter.ended.total() == 1)
            assert agent.onboarding.waiting == 1
            gate.set()
            async with asyncio.timeout(30):
                assert list(await asyncio.gather(first, second)) == [[None], [None]]


class TestOutages:
    @pytest.mark.rule("ONB-14")
    @pytest.mark.parametrize(
        "error",
        [Unavailable("down"), SerializationFailure("again"), QueryTimeout("slow"), DatabaseError("no")],
    )
    async def test_an_outage_is_waited_for_and_fails_nothing(self, error: StorageError) -> None:
        agent = Agent()
        agent.tables.probe_error = error
        failures = iter([error] * 20)

        async def trouble(_: Sequence[Incoming]) -> None:
            if (failure := next(failures, None)) is not None:
                raise failure

        agent.tables.trouble = trouble
        async with agent.running():
            assert await agent.do(task(1), task(2, "62812")) == [None, None]
        assert agent.meter.ended == {"success_created": 2}
        assert agent.pauses.waits >= 18

    async def test_a_job_that_waits_for_the_database_can_be_cancelled(self) -> None:
        agent = Agent()
        agent.tables.trouble = refuses("62811", Unavailable("down"))
        async with agent.running():
            outcome = await agent.submit(task())
            await until(lambda: agent.pauses.waits > 3)
            assert agent.health.state == f"onboarding {TENANT.company}: down"
        assert not outcome.done()
        assert agent.onboarding.waiting == 0


class TestKnownPairs:
    async def test_later_plain_messages_of_a_known_pair_are_not_stored_again(self) -> None:
        agent = Agent()
        async with agent.running():
            await agent.do(task(5))
            await agent.do(task(6), task(5), task(7, "62812"))
        assert [[m.message_id for m in batch] for batch in agent.tables.batches] == [["m5"], ["m7"]]
        assert agent.meter.ended == {"success_created": 2, "success_exists": 2}

    async def test_an_earlier_message_and_a_campaign_are_stored_all_the_same(self) -> None:
        agent = Agent()
        async with agent.running():
            await agent.do(task(5))
            await agent.do(task(4))
            await agent.do(task(6, campaign=CampaignAttribution("", "", "")))
        assert [batch[0].message_id for batch in agent.tables.batches] == ["m5", "m4", "m6"]

    async def test_a_pair_whose_rows_were_deleted_is_onboarded_again(self) -> None:
        """Results never depend on what is remembered."""
        agent = Agent()
        async with agent.running():
            await agent.do(task(5))
            agent.tables.log.clear()
            await agent.do(task(6))
        assert agent.meter.ended == {"success_created": 2}

    def test_the_oldest_pairs_are_forgotten_first(self) -> None:
        known = KnownPairs(2)
        for phone in ("1", "2"):
            known.add(TENANT, ("agent", phone))
        assert known.has(TENANT, ("agent", "1"))
        known.add(TENANT, ("agent", "3"))
        assert [known.has(TENANT, ("agent", phone)) for phone in "123"] == [True, False, True]
        assert not known.has(Tenant("Other"), ("agent", "1"))

    def test_a_message_older_than_the_contacts_origin_is_stored_all_the_same(self) -> None:
        """It comes between a campaign that gave no origin and the one that did."""
        known = KnownPairs(2)
        known.add(TENANT, ("agent", "1"), Version(30, 3))
        ages = (Version(20, 2), Version(30, 3), Version(40, 4), None)
        assert [known.has(TENANT, ("agent", "1"), age) for age in ages] == [False, True, True, False]


class TestPool:
    async def test_no_more_jobs_run_at_once_than_the_pool_has_slots(self) -> None:
        agent = Agent(pool_size=3)
        gate, running = asyncio.Event(), 0

        async def trouble(_: Sequence[Incoming]) -> None:
            nonlocal running
            running += 1
            await gate.wait()

        agent.tables.trouble = trouble
        async with agent.running():
            promises = [
                await agent.submit(task(number, tenant=Tenant(f"Company{number}"))) for number in range(8)
            ]
            await until(lambda: running == 3 and agent.channel.empty())
            assert agent.onboarding.waiting == 5
            gate.set()
            async with asyncio.timeout(30):
                await asyncio.gather(*promises)
            assert running == 8
            assert agent.onboarding.waiting == 0

    @pytest.mark.rule("ONB-16")
    async def test_jobs_of_one_company_run_one_after_the_other_and_leave_slots_for_the_others(self) -> None:
        """Side by side they would hold connections only to wait for each other's locks."""
        agent = Agent(pool_size=2)
        gate, began = asyncio.Event(), []

        async def trouble(messages: Sequence[Incoming]) -> None:
            began.append(messages[0].message_id)
            await gate.wait()

        agent.tables.trouble = trouble
        async with agent.running():
            jobs = [await agent.submit(task(number, f"6281{number}")) for number in range(3)]
            jobs.append(await agent.submit(task(9, tenant=Tenant("Other"))))
            await until(lambda: len(began) == 2)
            assert began == ["m0", "m9"]
            gate.set()
            async with asyncio.timeout(30):
                await asyncio.gather(*jobs)
            assert began == ["m0", "m9", "m1", "m2"]

    @pytest.mark.rule("ONB-16")
    async def test_a_full_queue_is_waited_for_with_one_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        agent = Agent(queue_size=2, max_block=0.01)
        await agent.submit(task(1), task(2))
        with caplog.at_level(logging.WARNING):
            blocked = asyncio.create_task(agent.submit(task(3)))
            await until(lambda: bool(caplog.records))
        assert not blocked.done()
        assert agent.onboarding.waiting == 2
        async with agent.running(), asyncio.timeout(30):
            assert await (await blocked) == [None]
        assert [record.getMessage() for record in caplog.records] == [
            "the onboarding queue is full: 2 tasks wait"
        ]

    async def test_messages_wait_while_others_of_their_company_hold_its_share_of_memory(self) -> None:
        agent = Agent()
        await agent.submit(task(1, data=bytes(SHARE // 2)))
        blocked = asyncio.create_task(agent.submit(task(2, data=bytes(SHARE // 2))))
        await asyncio.sleep(0.01)
        assert not blocked.done()
        assert agent.onboarding.waiting == 1
        async with agent.running(), asyncio.timeout(30):
            assert await (await blocked) == [None]

    async def test_an_item_larger_than_the_queue_does_not_hang(self) -> None:
        agent = Agent(queue_size=2)
        async with agent.running():
            assert await agent.do(*(task(n, f"6281{n}") for n in range(9))) == [None] * 9

    async def test_an_item_that_cannot_be_sent_leaves_the_queue(self) -> None:
        agent = Agent()

        async def fail(_: Sequence[ReceivedEvent]) -> None:
            raise ZeroDivisionError

        onboarding = Onboarding(
            tables=agent.tables.of,
            writer=BatchWriter("onboarding", agent.health),
            settlement=agent.settlement,  # type: ignore[arg-type]
            meter=agent.meter,
            send=fail,
        )
        with pytest.raises(ZeroDivisionError):
            await onboarding.submit([task()])
        assert onboarding.waiting == 0


def refuses(phone: str, error: Exception) -> Callable[[Sequence[Incoming]], Awaitable[None]]:
    """Trouble for every batch that has `phone` in it."""

    async def trouble(messages: Sequence[Incoming]) -> None:
        if any(message.phone == phone for message in messages):
            raise error

    return trouble


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_no_company_waits_for_the_onboarding_of_another_whose_tables_are_refused() -> None:
    agent, other = Agent(pool_size=1), Tenant("TehNusa")
    broken = Tables()

    async def refuse(_: Sequence[Incoming]) -> None:
        raise Unavailable("permission denied for table onboarding_log", "42501")

    broken.trouble = refuse
    agent.onboarding._tables = lambda tenant: (broken if tenant == TENANT else agent.tables).of(tenant)
    async with agent.running():
        never = await agent.submit(task(1))
        while not agent.pauses.waits:
            await asyncio.sleep(0)
        assert await agent.do(task(2, tenant=other)) == [None]
    assert not never.done()
