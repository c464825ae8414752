"""Each company has a connection that it prefers, and none is kept waiting for it."""

from __future__ import annotations

import asyncio
import zlib

import pytest

from tables.connection import home_slots
from tables.connection.home_slots import HomeSlots

SIZE = 4


def _homes(slot: int, count: int) -> list[str]:
    """Names whose home this slot is."""
    names = (f"daisi_{number}" for number in range(1000))
    return [name for name in names if zlib.crc32(name.encode()) % SIZE == slot][:count]


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_company_always_gets_the_same_slot_while_it_is_idle() -> None:
    slots = HomeSlots(SIZE)
    for slot in range(SIZE):
        for name in _homes(slot, 3):
            assert await slots.take(name) == slot
            slots.put_back(slot)


async def test_a_busy_home_is_waited_for_a_moment_only_while_another_slot_is_idle() -> None:
    slots = HomeSlots(SIZE)
    first, second = _homes(2, 2)
    assert [await slots.take(first), await slots.take(second), await slots.take(first)] == [2, 3, 0]


async def test_a_home_that_comes_back_in_that_moment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_slots, "CHOOSY", 3600.0)
    slots = HomeSlots(SIZE)
    first, second = _homes(2, 2)
    assert await slots.take(first) == 2
    waiting = asyncio.create_task(slots.take(second))
    await _settled()
    assert await slots.take(_homes(0, 1)[0]) == 0
    slots.put_back(0)  # not what it waits for
    await _settled()
    assert not waiting.done()
    slots.put_back(2)
    assert await waiting == 2


async def test_a_slot_that_a_company_has_used_is_taken_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One company with several batches at a time pays once."""
    slots = HomeSlots(SIZE)
    [name] = _homes(1, 1)
    assert [await slots.take(name), await slots.take(name)] == [1, 2]
    slots.put_back(1)
    slots.put_back(2)
    monkeypatch.setattr(home_slots, "CHOOSY", 3600.0)
    assert [await slots.take(name), await slots.take(name)] == [1, 2]


async def test_which_slots_were_used_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home_slots, "MEMORY", -1.0)
    slots = HomeSlots(SIZE)
    [name] = _homes(1, 1)
    assert [await slots.take(name), await slots.take(name)] == [1, 2]
    slots.put_back(2)
    monkeypatch.setattr(home_slots, "CHOOSY", 3600.0)
    waiting = asyncio.create_task(slots.take(name))
    await _settled()
    assert not waiting.done()
    slots.put_back(1)
    assert await waiting == 1


async def test_what_has_no_home_gets_the_slot_that_was_used_last() -> None:
    slots = HomeSlots(SIZE)
    assert await slots.take(None) == 0
    [name] = _homes(3, 1)
    assert await slots.take(name) == 3
    slots.put_back(0)
    slots.put_back(3)
    assert [await slots.take(None) for _ in range(SIZE)] == [3, 0, 1, 2]


async def test_a_slot_that_comes_back_goes_to_the_first_whose_home_it_is() -> None:
    slots = HomeSlots(SIZE)
    for _ in range(SIZE):
        await slots.take(None)
    order: list[str] = []

    async def wait(name: str) -> None:
        await slots.take(name)
        order.append(name)

    [elsewhere], (first, second) = _homes(0, 1), _homes(1, 2)
    tasks = []
    for name in (elsewhere, first, second):
        tasks.append(asyncio.create_task(wait(name)))
        await _settled()
    for _ in range(3):
        slots.put_back(1)
        await _settled()
    await asyncio.gather(*tasks)
    assert order == [first, second, elsewhere]


async def test_nobody_waits_for_long_behind_companies_that_are_at_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(home_slots, "PATIENCE", -1.0)
    slots = HomeSlots(1)
    await slots.take(None)
    waiting = [asyncio.create_task(slots.take(name)) for name in (None, "daisi_kopi")]
    await _settled()
    slots.put_back(0)
    await _settled()
    assert [task.done() for task in waiting] == [True, False]
    slots.put_back(0)
    await asyncio.gather(*waiting)


async def test_whoever_gives_up_waiting_loses_no_slot() -> None:
    slots = HomeSlots(1)
    await slots.take(None)
    before, at_once = asyncio.create_task(slots.take(None)), asyncio.create_task(slots.take(None))
    await _settled()
    before.cancel()
    await asyncio.gather(before, return_exceptions=True)
    slots.put_back(0)  # to the second, which does not know it yet
    at_once.cancel()
    await asyncio.gather(at_once, return_exceptions=True)
    assert await slots.take("daisi_kopi") == 0


async def test_no_slot_is_lent_twice() -> None:
    slots = HomeSlots(SIZE)
    lent: set[int] = set()

    async def use(name: str) -> None:
        for _ in range(20):
            slot = await slots.take(name)
            assert slot not in lent
            lent.add(slot)
            await asyncio.sleep(0)
            lent.remove(slot)
            slots.put_back(slot)

    await asyncio.gather(*(use(f"daisi_{number}") for number in range(30)))
    assert sorted([await slots.take(None) for _ in range(SIZE)]) == list(range(SIZE))
