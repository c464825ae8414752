"""What waits for onboarding is bounded for each company, in bytes; what is remembered of pairs is exact."""

from __future__ import annotations

import asyncio

import pytest

from agents.onboarding_queue import KnownPairs, TaskQueue
from events.subjects import Tenant
from tables.last_writer_wins import Version

# Of ten tasks with 100 bytes each.
SHARE = 10 * 100
TENANT, OTHER = Tenant("KopiNusa01"), Tenant("TokoJaya02")


async def blocked(queue: TaskQueue, tenant: Tenant, tasks: int, size: int) -> asyncio.Task[None]:
    """A submitter that has tried, and waits."""
    task = asyncio.create_task(queue.enter(tenant, tasks, size))
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def test_a_company_waits_once_its_messages_hold_its_share_of_memory() -> None:
    queue = TaskQueue(limit=10_000, share=SHARE, max_block=60)
    for _ in range(2):
        await queue.enter(TENANT, 5, 500)
    waits = await blocked(queue, TENANT, 1, 1)
    queue.leave(TENANT, 5, 500)
    async with asyncio.timeout(30):
        await waits
    assert queue.waiting == 6


@pytest.mark.rule("ONB-16")
async def test_a_company_that_has_used_its_share_makes_no_other_wait() -> None:
    queue = TaskQueue(limit=10_000, share=SHARE, max_block=60)
    await queue.enter(TENANT, 10, 1000)
    waits = await blocked(queue, TENANT, 1, 1)
    async with asyncio.timeout(30):
        await queue.enter(OTHER, 10, 1000)
    assert queue.waiting == 20
    waits.cancel()


async def test_a_load_larger_than_a_share_is_let_in_alone() -> None:
    queue = TaskQueue(limit=10_000, share=SHARE, max_block=60)
    async with asyncio.timeout(30):
        await queue.enter(TENANT, 1, 5 * SHARE)
    waits = await blocked(queue, TENANT, 1, 5 * SHARE)
    queue.leave(TENANT, 1, 5 * SHARE)
    async with asyncio.timeout(30):
        await waits


async def test_all_companies_together_have_no_more_tasks_waiting_than_the_limit() -> None:
    queue = TaskQueue(limit=10, share=SHARE, max_block=60)
    await queue.enter(TENANT, 8, 8)
    waits = await blocked(queue, OTHER, 3, 3)
    queue.leave(TENANT, 8, 8)
    async with asyncio.timeout(30):
        await waits
    assert queue.waiting == 3


def test_versions_of_the_same_nanosecond_are_told_apart_by_their_sequence() -> None:
    known = KnownPairs(2)
    known.add(TENANT, ("agent", "1"), Version(1_795_500_000_000_000_000, 2**40))
    ages = [Version(1_795_500_000_000_000_000, 2**40 + step) for step in (-1, 0, 1)]
    assert [known.has(TENANT, ("agent", "1"), age) for age in ages] == [False, True, True]
