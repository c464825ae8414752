"""The companies of a worker that serves all: each is provisioned at its first event."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Final, Self

import mode

from events.subjects import Tenant, company_problem
from streams.config.settings import Settings
from streams.jetstream.lanes import Admission
from streams.lifecycle.conditions import WaitReasons
from streams.lifecycle.retrying import until_done
from tables.schema.companies import Company

logger = logging.getLogger(__name__)

# Seconds after which the database is asked again which companies have a schema.
LOOK_AGAIN: Final = 15.0
# Seconds after which the next company is prepared, even if this one is not done.
PREPARING: Final = 1.0
# The wait of companies that have no schema.
_NEW: Final = "new companies"
# Names that events came with and that are not served, kept in memory.
REMEMBERED: Final = 10_000


@dataclass(kw_only=True, frozen=True, slots=True)
class FleetRules:
    """Which companies are served: by name or pattern, and how many are given a schema at their first event."""

    allow: Sequence[str]
    exclude: Sequence[str]
    provision: bool
    maximum: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The rules of these settings."""
        return cls(
            allow=settings.company_allow,
            exclude=settings.company_exclude,
            provision=settings.company_provision,
            maximum=settings.company_max,
        )

    def allows(self, company: str) -> bool:
        """Whether the company is to be served, and its name can be used."""
        return (
            any(fnmatchcase(company, pattern) for pattern in self.allow)
            and not any(fnmatchcase(company, pattern) for pattern in self.exclude)
            and company_problem(company) is None
        )


class Fleet(mode.Service):
    """Knows the companies that have a schema, and gives one to those that come.

    An event of a company that is not allowed is not handled, and stays in its stream. One of a company that may have
    no schema, or whose schema is another's, comes again.
    """

    def __init__(
        self,
        *,
        rules: FleetRules,
        listed: Callable[[], Awaitable[Sequence[Company]]],
        schemas: Callable[[], Awaitable[Collection[str]]],
        halted: Callable[[], Collection[str]],
        provision: Callable[[Tenant], Awaitable[None]],
        outage: Callable[[], Awaitable[bool]],
        on_company: Callable[[Tenant], None],
        on_refused: Callable[[], None],
        troubles: WaitReasons,
    ) -> None:
        """`listed` are the companies that have tables, `schemas` all schemas, also without tables.

        `halted` are those with events in hand that wait for their tables; `on_company` is called for each one that is
        served.
        """
        super().__init__()
        self._rules = rules
        self._listed = listed
        self._schemas = schemas
        self._halted = halted
        self._provision = provision
        self._outage = outage
        self._on_company = on_company
        self._on_refused = on_refused
        self._troubles = troubles
        self._by_schema: dict[str, Tenant] = {}
        self._loaded = asyncio.Event()
        self._preparing: dict[Tenant, asyncio.Task[None]] = {}
        self._served: set[Tenant] = set()
        self._refused: _Recent = _Recent(REMEMBERED)
        self._waiting: _Recent = _Recent(REMEMBERED)
        self.tenants: list[Tenant] = []  # those that are served

    async def load(self) -> None:
        """Ask which companies there are. Raises `StorageError`."""
        served = list(self._served)
        schemas = await self._schemas()
        for company in await self._listed():
            if company.name is not None and self._rules.allows(company.name):
                self._by_schema.setdefault(company.schema, Tenant(company.name))
        for tenant in served:
            if tenant.schema not in schemas:
                self._forget(tenant)
        for tenant in set(self._by_schema.values()) - self._served - self._preparing.keys():
            if tenant.schema not in schemas:
                del self._by_schema[tenant.schema]
        # What was in hand waits for tables, and is not admitted anew.
        for tenant in map(Tenant, self._halted()):
            if tenant.schema not in schemas and self._by_schema.setdefault(tenant.schema, tenant) == tenant:
                self._prepared(tenant)
        self._waiting.clear()
        self._troubles.end(_NEW)
        self._loaded.set()

    def _forget(self, tenant: Tenant) -> None:
        """Its schema is gone; with its next event it is a new company (FLT-9)."""
        logger.warning("its schema was dropped", extra={"company_id": tenant.company})
        self._served.discard(tenant)
        self.tenants.remove(tenant)
        self._by_schema.pop(tenant.schema, None)

    def admit(self, company: str) -> Admission:
        """See `Companies.admit`."""
        if company in self._refused:
            self._on_refused()
            return "refused"
        tenant = Tenant(company)
        if tenant in self._served:
            return "served"
        if not self._rules.allows(company):
            self._refused.add(company)
            self._on_refused()
            return "refused"
        owner = self._by_schema.get(tenant.schema)
        if owner is None and self._rules.provision and len(self._by_schema) < self._rules.maximum:
            owner = self._by_schema[tenant.schema] = tenant
        if owner == tenant:
            return "served"
        self._wait(tenant, owner)
        return "waits"

    async def serve(self, tenant: Tenant) -> None:
        """See `Companies.serve`."""
        if tenant not in self._served:
            await asyncio.shield(self._prepared(tenant))

    async def outage(self) -> bool:
        """See `Companies.outage`."""
        return await self._outage()

    async def on_started(self) -> None:
        """Prepare the companies that are there, and look for those that others provision."""
        self.add_future(self._look())

    async def prepare_all(self) -> None:
        """Bring every schema up to date, also of companies without events; those of events go before."""
        for tenant in list(self._by_schema.values()):
            if tenant not in self._served:
                await asyncio.wait({self._prepared(tenant)}, timeout=PREPARING)

    def _prepared(self, tenant: Tenant) -> asyncio.Task[None]:
        if tenant not in self._preparing:
            self._preparing[tenant] = asyncio.create_task(self._prepare(tenant))
        return self._preparing[tenant]

    async def _prepare(self, tenant: Tenant) -> None:
        name = f"company {tenant.company}"
        began = time.monotonic()
        await until_done(partial(self._provision, tenant), partial(self._troubles.begin, name))
        self._troubles.end(name)
        self._served.add(tenant)
        self.tenants.append(tenant)
        del self._preparing[tenant]
        self._on_company(tenant)
        logger.info("served after %.1f s", time.monotonic() - began, extra={"company_id": tenant.company})

    def _wait(self, tenant: Tenant, owner: Tenant | None) -> None:
        if tenant.company in self._waiting:
            return
        self._waiting.add(tenant.company)
        if owner is not None:
            reason = f"is that of {owner.company!r}: events of {tenant.company!r}, which differs only in case, wait"
            self._troubles.begin(f"schema {tenant.schema}", reason)
        elif self._rules.provision:
            reason = f"{self._rules.maximum} have a schema, and COMPANY_MAX allows no more"
            self._troubles.begin(_NEW, reason)
        else:
            self._troubles.begin(_NEW, "no schema, and COMPANY_PROVISION is existing")

    async def _look(self) -> None:
        await self._loaded.wait()
        while not self.should_stop:
            await self.prepare_all()
            await self.sleep(LOOK_AGAIN)
            try:
                await self.load()
            except Exception as error:
                logger.debug("which companies have a schema is not known: %s", error)


class _Recent:
    """The latest names, so many at most."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, name: str) -> None:
        self._names[name] = None
        if len(self._names) > self._limit:
            self._names.popitem(last=False)

    def clear(self) -> None:
        self._names.clear()
