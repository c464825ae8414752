"""Workers for the acceptance ring: each dies with its test, or with its module when several tests share it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

import asyncpg
import pytest
from nats.aio.client import Client

from events.subjects import Tenant
from testkit.worker import Worker
from tests.acceptance.company_probe import CompanyProbe
from tests.fleets import as_fleet

# One after the other for the tests of a module; more of them only cost the shared worker its start.
_COMPANIES = 8


class Launch:
    """Starts workers that end with the test; with `ready` it returns when /ready says so. Addresses that are not given
    are the session's; variables go by name or, several, in `also`."""

    def __init__(self, folder: Path, nats_url: str, postgres_dsn: str) -> None:
        self._folder = folder
        self._servers = (nats_url, postgres_dsn)
        self.made: list[Worker] = []

    def __call__(
        self,
        *companies: str,
        ready: bool = True,
        nats_url: str | None = None,
        postgres_dsn: str | None = None,
        also: Mapping[str, str] = MappingProxyType({}),
        **settings: str,
    ) -> Worker:
        """See the class."""
        worker = Worker(
            companies,
            nats_url=self._servers[0] if nats_url is None else nats_url,
            postgres_dsn=self._servers[1] if postgres_dsn is None else postgres_dsn,
            log=self._folder / f"{'-'.join(companies[:1])}-{len(self.made)}.log",
            **{**as_fleet(companies), **also, **settings},
        )
        self.made.append(worker)
        worker.start()
        if ready:
            worker.wait_ready()
        return worker

    def logged_errors(self) -> list[str]:
        """What they logged as an error: somebody met something unexpected."""
        return [
            f"the worker logged: {str(said.get('msg'))[:150]} ({worker.log})"
            for worker in self.made
            for said in worker.lines()
            if said.get("level") in ("error", "critical")
        ]

    def kill_all(self) -> None:
        """End whatever still runs."""
        for worker in self.made:
            worker.kill()


@pytest.fixture
def launch(tmp_path: Path, nats_url: str, postgres_dsn: str) -> Iterator[Launch]:
    """Starts workers that end with the test."""
    launch = Launch(tmp_path, nats_url, postgres_dsn)
    yield launch
    launch.kill_all()


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    """Further variables of the module's shared worker."""
    return {}


class Shared:
    """A worker for several companies, each given away once; when they are used up, a new one takes over."""

    def __init__(self, start: Callable[[Sequence[str]], Worker]) -> None:
        self._start = start
        self._left: list[str] = []
        self.worker: Worker | None = None

    def company(self) -> str:
        """A company that the worker serves and no other test has."""
        if not self._left:
            self.close()
            companies = [f"Kopi{uuid4().hex[:12].upper()}nusa" for _ in range(_COMPANIES)]
            self.worker = self._start(companies)
            self.worker.wait_ready()
            self._left = companies
        return self._left.pop()

    def any_company(self) -> str:
        """A company that the worker serves and other tests may have had."""
        if self.worker is None:
            self._left.append(self.company())
        return self._left[-1]

    def close(self) -> None:
        """End the worker, if there is one."""
        if self.worker is not None:
            self.worker.kill()


@pytest.fixture(scope="module")
def sharing(
    nats_url: str, postgres_dsn: str, settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared]:
    """The module's worker, started for the first test that needs it."""

    def start(companies: Sequence[str]) -> Worker:
        log = tmp_path_factory.mktemp("shared") / "worker.log"
        worker = Worker(
            companies,
            nats_url=nats_url,
            postgres_dsn=postgres_dsn,
            log=log,
            **as_fleet(companies),
            **settings,
        )
        worker.start()
        return worker

    sharing = Shared(start)
    yield sharing
    sharing.close()


@asynccontextmanager
async def visited(company: str, nc: Client, dsn: str) -> AsyncIterator[CompanyProbe]:
    """A company, with a connection of its own to its database."""
    database = await asyncpg.connect(dsn)
    try:
        for kind in ("json", "jsonb"):
            await database.set_type_codec(kind, encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
        yield CompanyProbe(Tenant(company), nc, database)
    finally:
        # Its server may be frozen or gone: then there is nobody to say good-bye to.
        with suppress(Exception):
            await database.close(timeout=2)


@pytest.fixture
async def probe(company: str, nc: Client, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """The test's own company; no worker serves it unless the test launches one."""
    async with visited(company, nc, postgres_dsn) as probe:
        yield probe


@pytest.fixture
async def served(sharing: Shared, nc: Client, postgres_dsn: str) -> AsyncIterator[CompanyProbe]:
    """A company of the module's shared worker."""
    async with visited(sharing.company(), nc, postgres_dsn) as probe:
        yield probe


@pytest.fixture
def shared(sharing: Shared, served: CompanyProbe) -> Worker:
    """The worker that serves `served`, and others beside it."""
    assert sharing.worker is not None
    assert served.company in sharing.worker.companies
    return sharing.worker
