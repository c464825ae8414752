"""The onboarding agent with tables in memory: outcomes of contract 5.7, the pool of 5.8, faults of design 6."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest

from agents.onboarding import Onboarding, OnboardingJob, OnboardingTask, Results, wants_onboarding
from agents.onboarding_queue import KnownPairs
from events import errors
from events.backoff import Backoff
from events.errors import EventError, Rejected
from events.fields import Campaign
from events.subjects import Tenant
from tables.attribution import CampaignAttribution, Incoming
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

TENANT = Tenant("KopiNusa01")


class Tables:
    """Remembers pairs; `trouble` may raise for a batch."""

    def __init__(self) -> None:
        self.log: dict[Pair, Version | None] = {}
        self.batches: list[list[Incoming]] = []
        self.trouble: Callable[[Sequence[Incoming]], Awaitable[None]] | None = None
        self.probe_error: Exception | None = None

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


class Meter:
    """Counts what the agent says."""

    def __init__(self) -> None:
        self.submitted = 0
        self.ended: Counter[str] = Counter()
        self.seconds: list[float] = []

    def onboarding_submitted(self, company: str, count: int) -> None:
        self.submitted += count

    def onboarding_ended(self, company: str, status: str, seconds: float) -> None:
        self.ended[status] += 1
        self.seconds.append(seconds)


class NoPauses(Backoff):
    """Waits for nothing, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def __call__(self) -> NoPauses:
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


class Stage:
    """An agent that reads a queue."""

    def __init__(self, **settings: object) -> None:
        self.tables = Tables()
        self.meter = Meter()
        self.pauses = NoPauses()
        self.channel: asyncio.Queue[OnboardingJob] = asyncio.Queue()
        self.handled = 0
        self.health = Health()
        self.onboarding = Onboarding(
            tables=lambda _: self.tables,
            probe=lambda _: self.tables,
            meter=self.meter,
            send=self.channel.put,
            health=self.health,
            backoff=self.pauses,
            **settings,  # type: ignore[arg-type]
        )

    async def _stream(self) -> AsyncIterator[OnboardingJob]:
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

    async def do(self, *tasks: OnboardingTask) -> list[EventError | None]:
        job, outcome = promise(*tasks)
        await self.onboarding.submit(job)
        async with asyncio.timeout(30):
            return list(await outcome)


def promise(*tasks: OnboardingTask, tenant: Tenant = TENANT) -> tuple[OnboardingJob, asyncio.Future[Results]]:
    outcome: asyncio.Future[Results] = asyncio.get_running_loop().create_future()

    async def done(results: Results) -> None:
        outcome.set_result(results)  # raises when called twice

    return OnboardingJob(tenant, list(tasks), done, time.perf_counter()), outcome


def task(
    number: int = 1, phone: str = "62811", agent: str = "agent", campaign: Campaign | None = None
) -> OnboardingTask:
    stamp = EventStamp(Version(number, number), "{}")
    return OnboardingTask(
        agent,
        phone,
        f"m{number}",
        1_795_500_000,
        f"chat-{phone}",
        f"{phone}@s.whatsapp.net",
        campaign,
        stamp,
    )


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
    assert wants_onboarding(flow, phone, jid) is wanted


class TestOutcomes:
    async def test_a_new_phone_is_success_created_and_a_known_one_success_exists(self) -> None:
        stage = Stage()
        async with stage.running():
            assert await stage.do(task(1), task(2, "62812")) == [None, None]
            assert await stage.do(task(3)) == [None]
        assert stage.meter.ended == {"success_created": 2, "success_exists": 1}
        assert stage.meter.submitted == 3
        assert all(seconds >= 0 for seconds in stage.meter.seconds)

    async def test_a_job_is_stored_as_one_batch_with_cleaned_phones(self) -> None:
        stage = Stage()
        async with stage.running():
            await stage.do(task(1, "+62 (811)"), task(2, "62812"))
        [batch] = stage.tables.batches
        assert [message.phone for message in batch] == ["62811", "62812"]

    @pytest.mark.parametrize(
        ("campaign", "touch"),
        [
            (None, None),
            (Campaign(is_campaign=False, tags="a"), None),
            (Campaign(tags="a"), None),
            (Campaign(is_campaign=True, tags="a", origin="ads"), CampaignAttribution("a", "", "ads")),
        ],
    )
    async def test_a_campaign_counts_only_if_it_says_so(
        self, campaign: Campaign | None, touch: CampaignAttribution | None
    ) -> None:
        stage = Stage()
        async with stage.running():
            await stage.do(task(campaign=campaign))
        assert stage.tables.batches[0][0].campaign == touch

    async def test_no_phone_after_cleaning_or_no_agent_is_error_other_and_holds_nothing_back(self) -> None:
        stage = Stage()
        async with stage.running():
            assert await stage.do(task(1, "+ ()"), task(2, agent=""), task(3)) == [None, None, None]
        assert stage.meter.ended == {"error_other": 2, "success_created": 1}

    async def test_a_data_error_dead_letters_the_guilty_message_alone(self) -> None:
        stage = Stage()
        stage.tables.trouble = refuses("62813", DataError("SQLSTATE 22001"))
        async with stage.running():
            results = await stage.do(*(task(n, f"6281{n}") for n in range(1, 8)))
        assert [type(error) for error in results] == [*[type(None)] * 2, Rejected, *[type(None)] * 4]
        assert stage.meter.ended == {"success_created": 6, "error_db": 1}

    async def test_a_failure_of_one_task_alone_is_retryable(self) -> None:
        stage = Stage()
        stage.tables.trouble = refuses("62811", DatabaseError("SQLSTATE XX000"))
        async with stage.running():
            [error] = await stage.do(task())
        assert isinstance(error, errors.DatabaseError)
        assert stage.meter.ended == {"error_db": 1}

    async def test_an_unexpected_exception_is_error_other_for_its_message_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage = Stage()
        stage.tables.trouble = refuses("62812", ZeroDivisionError())
        async with stage.running():
            assert await stage.do(task(1), task(2, "62812"), task(3, "62813")) == [None, None, None]
        assert stage.meter.ended == {"success_created": 2, "error_other": 1}
        assert "unexpected exception" in caplog.text

    async def test_an_exception_while_settling_does_not_stop_the_agent(self) -> None:
        stage = Stage()

        async def fail(_: Results) -> None:
            raise ZeroDivisionError

        async with stage.running():
            await stage.onboarding.submit(OnboardingJob(TENANT, [task()], fail, time.perf_counter()))
            assert await stage.do(task(2, "62812")) == [None]


class TestOutages:
    @pytest.mark.parametrize(
        "error",
        [Unavailable("down"), SerializationFailure("again"), QueryTimeout("slow"), DatabaseError("no")],
    )
    async def test_an_outage_is_waited_for_and_fails_nothing(self, error: StorageError) -> None:
        stage = Stage()
        stage.tables.probe_error = error
        failures = iter([error] * 20)

        async def trouble(_: Sequence[Incoming]) -> None:
            if (failure := next(failures, None)) is not None:
                raise failure

        stage.tables.trouble = trouble
        async with stage.running():
            assert await stage.do(task(1), task(2, "62812")) == [None, None]
        assert stage.meter.ended == {"success_created": 2}
        assert stage.pauses.waits >= 18

    async def test_a_job_that_waits_for_the_database_can_be_cancelled(self) -> None:
        stage = Stage()
        stage.tables.trouble = refuses("62811", Unavailable("down"))
        async with stage.running():
            job, outcome = promise(task())
            await stage.onboarding.submit(job)
            await until(lambda: stage.pauses.waits > 3)
            assert stage.health.state == f"onboarding {TENANT.company}: down"
        assert not outcome.done()
        assert stage.onboarding.waiting == 0


class TestKnownPairs:
    async def test_later_plain_messages_of_a_known_pair_are_not_stored_again(self) -> None:
        stage = Stage()
        async with stage.running():
            await stage.do(task(5))
            await stage.do(task(6), task(5), task(7, "62812"))
        assert [[m.message_id for m in batch] for batch in stage.tables.batches] == [["m5"], ["m7"]]
        assert stage.meter.ended == {"success_created": 2, "success_exists": 2}

    async def test_an_earlier_message_and_a_campaign_are_stored_all_the_same(self) -> None:
        stage = Stage()
        async with stage.running():
            await stage.do(task(5))
            await stage.do(task(4))
            await stage.do(task(6, campaign=Campaign(is_campaign=True)))
        assert [batch[0].message_id for batch in stage.tables.batches] == ["m5", "m4", "m6"]

    async def test_a_pair_whose_rows_were_deleted_is_onboarded_again(self) -> None:
        """Results never depend on what is remembered."""
        stage = Stage()
        async with stage.running():
            await stage.do(task(5))
            stage.tables.log.clear()
            await stage.do(task(6))
        assert stage.meter.ended == {"success_created": 2}

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
    async def test_no_more_jobs_run_at_once_than_the_pool_has_places(self) -> None:
        stage = Stage(pool_size=3)
        gate, running = asyncio.Event(), 0

        async def trouble(_: Sequence[Incoming]) -> None:
            nonlocal running
            running += 1
            await gate.wait()

        stage.tables.trouble = trouble
        async with stage.running():
            promises = [promise(task(number), tenant=Tenant(f"Company{number}")) for number in range(8)]
            for job, _ in promises:
                await stage.onboarding.submit(job)
            await until(lambda: running == 3 and stage.channel.empty())
            assert stage.onboarding.waiting == 5
            gate.set()
            async with asyncio.timeout(30):
                await asyncio.gather(*(outcome for _, outcome in promises))
            assert running == 8
            assert stage.onboarding.waiting == 0

    async def test_jobs_of_one_company_take_turns_and_leave_places_for_the_others(self) -> None:
        """Side by side they would hold connections only to wait for each other's locks."""
        stage = Stage(pool_size=2)
        gate, began = asyncio.Event(), []

        async def trouble(messages: Sequence[Incoming]) -> None:
            began.append(messages[0].message_id)
            await gate.wait()

        stage.tables.trouble = trouble
        async with stage.running():
            jobs = [promise(task(number, f"6281{number}")) for number in range(3)]
            jobs.append(promise(task(9), tenant=Tenant("Other")))
            for job, _ in jobs:
                await stage.onboarding.submit(job)
            await until(lambda: len(began) == 2)
            assert began == ["m0", "m9"]
            gate.set()
            async with asyncio.timeout(30):
                await asyncio.gather(*(outcome for _, outcome in jobs))
            assert began == ["m0", "m9", "m1", "m2"]

    async def test_a_full_queue_is_waited_for_with_one_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage = Stage(queue_size=2, max_block=0.01)
        await stage.onboarding.submit(promise(task(1), task(2))[0])
        job, outcome = promise(task(3))
        with caplog.at_level(logging.WARNING):
            blocked = asyncio.create_task(stage.onboarding.submit(job))
            await until(lambda: bool(caplog.records))
        assert not blocked.done()
        assert stage.onboarding.waiting == 2
        async with stage.running(), asyncio.timeout(30):
            await blocked
            assert await outcome == [None]
        assert [record.getMessage() for record in caplog.records] == [
            "the onboarding queue is full: 2 tasks wait"
        ]

    async def test_an_item_larger_than_the_queue_does_not_hang(self) -> None:
        stage = Stage(queue_size=2)
        async with stage.running():
            assert await stage.do(*(task(n, f"6281{n}") for n in range(9))) == [None] * 9

    async def test_an_item_that_cannot_be_sent_leaves_the_queue(self) -> None:
        stage = Stage()

        async def fail(_: OnboardingJob) -> None:
            raise ZeroDivisionError

        onboarding = Onboarding(
            tables=lambda _: stage.tables,
            probe=lambda _: stage.tables,
            meter=stage.meter,
            send=fail,
            health=stage.health,
        )
        with pytest.raises(ZeroDivisionError):
            await onboarding.submit(promise(task())[0])
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
    stage, other = Stage(pool_size=1), Tenant("TehNusa")
    broken = Tables()

    async def refuse(_: Sequence[Incoming]) -> None:
        raise Unavailable("permission denied for table onboarding_log", "42501")

    broken.trouble = refuse
    stage.onboarding._tables = lambda tenant: broken if tenant == TENANT else stage.tables
    stuck, never = promise(task(1))
    well, outcome = promise(task(2), tenant=other)
    async with stage.running():
        await stage.onboarding.submit(stuck)
        while not stage.pauses.waits:
            await asyncio.sleep(0)
        await stage.onboarding.submit(well)
        async with asyncio.timeout(30):
            assert list(await outcome) == [None]
    assert not never.done()
