"""The start of companies: what is refused holds up only what needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from events.subjects import Tenant
from streams.jetstream.specs import ConsumerSpec, consumers
from streams.lifecycle.company_startup import CompanyStartup
from streams.lifecycle.conditions import WaitReasons
from streams.lifecycle.retrying import Fatal
from tests.reconcile import default_settings
from tests.unit.fakes import until

CONFIG = default_settings()
ONE, TWO = Tenant("One"), Tenant("Two")
SPECS = [spec for tenant in (ONE, TWO) for spec in consumers(CONFIG, tenant)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.lifecycle.retrying.FIRST_WAIT", 0.001)
    monkeypatch.setattr("streams.lifecycle.retrying.LONGEST_WAIT", 0.002)


class Server:
    """Does what it is asked for, but for what is in `refuses` or `hangs`."""

    def __init__(self) -> None:
        self.refuses: dict[str, Exception] = {}
        self.hangs: set[str] = set()
        self.sources: list[str] = []
        self.joined = 0
        self.unserved = WaitReasons("{name} waits: {reason}", "{name} is there")
        self.startup = CompanyStartup(
            specs=SPECS,
            stream=self._answer,
            schema=lambda tenant: self._answer(tenant.company),
            consumer=lambda spec: self._answer(spec.durable),
            start_source=self._start_source,
            on_company=self._join,
            unserved=self.unserved,
        )

    async def _answer(self, name: str) -> None:
        if name in self.hangs:
            await asyncio.Event().wait()
        if name in self.refuses:
            raise self.refuses[name]

    async def _start_source(self, spec: ConsumerSpec) -> None:
        self.sources.append(spec.name)

    def _join(self) -> None:
        self.joined += 1


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[asyncio.Task[None]]:
    """The start, under way."""
    task = asyncio.create_task(server.startup.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, ExceptionGroup):
            await task


async def test_everything_is_served_and_nothing_waits() -> None:
    server = Server()
    await server.startup.run()
    assert len(server.sources) == len(SPECS)
    assert server.unserved.all() == {}
    assert server.startup.companies == [ONE, TWO]


@pytest.mark.rule("RUN-6")
async def test_a_refused_stream_holds_up_only_the_consumers_on_it() -> None:
    server = Server()
    server.refuses[CONFIG.dlq_stream] = OSError("no room")
    async with running(server) as task:
        await server.startup.tried()
        await until(lambda: len(server.sources) == 4)
        assert server.unserved.all() == {
            "stream dlq_stream": "no room",
            "dlq One": "waits for stream dlq_stream",
            "dlq Two": "waits for stream dlq_stream",
        }
        server.refuses.clear()
        await task
    assert len(server.sources) == len(SPECS)
    assert server.unserved.all() == {}


@pytest.mark.rule("RUN-6")
async def test_a_refused_schema_holds_up_only_its_company_which_joins_later() -> None:
    server = Server()
    server.refuses["Two"] = OSError("permission denied")
    async with running(server) as task:
        await server.startup.tried()
        await until(lambda: len(server.sources) == 3)
        assert server.unserved.all()["company Two"] == "permission denied"
        assert server.startup.companies == [ONE]
        assert server.joined == 1
        server.refuses.clear()
        await task
    assert server.startup.companies == [ONE, TWO]
    assert server.joined == 2


async def test_a_refused_consumer_holds_up_nothing_else() -> None:
    server = Server()
    server.refuses["wa_realtime_Two"] = OSError("too many")
    async with running(server):
        await server.startup.tried()
        await until(lambda: len(server.sources) == 5)
        assert server.unserved.all() == {"realtime Two": "too many"}
        assert [spec.durable for spec in SPECS if not server.startup.is_served(spec)] == ["wa_realtime_Two"]


async def test_what_neither_works_nor_fails_is_not_waited_for_by_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.lifecycle.company_startup.PATIENCE", 0.02)
    server = Server()
    server.hangs.add("One")
    async with running(server):
        await server.startup.tried()
        await until(lambda: len(server.sources) == 3)
        waiting = {"realtime One", "historical One", "dlq One"}
        assert server.unserved.all() == dict.fromkeys(waiting, "not started yet")


async def test_a_wrong_setting_ends_the_start_of_all() -> None:
    server = Server()
    server.refuses["One"] = Fatal("COMPANY_ID")
    with pytest.raises(ExceptionGroup) as caught:
        await server.startup.run()
    assert caught.group_contains(Fatal, match="COMPANY_ID")
