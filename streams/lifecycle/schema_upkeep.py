"""Upkeep of the tables that no event waits for: each company at its own time, a failure delays only that company."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from events.backoff import Backoff
from events.subjects import Tenant
from streams.lifecycle.turns import Turns
from tables.errors import StorageError

logger = logging.getLogger(__name__)

# Seconds between two looks at what is due.
LOOK_EVERY: Final = 5.0
# Seconds; the back-off waits half to all of it.
FIRST_DELAY: Final = 7.0
LONGEST_DELAY: Final = 375.0


@dataclass(slots=True)
class _Plan:
    """When a company's task is due, in `time.monotonic()` seconds."""

    due: float = 0.0
    begun: bool = False  # whether the last run left more to do at once
    backoff: Backoff = field(default_factory=lambda: Backoff(FIRST_DELAY, LONGEST_DELAY))


@dataclass(eq=False)
class CompanyTask:
    """One task for every company, each `every` seconds; after a failure with a back-off.

    Of many companies that are due at once, as after the start, some begin at each look.
    """

    name: str
    tenants: Sequence[Tenant]  # may grow
    every: float
    run: Callable[[Tenant], Awaitable[bool]]  # returns whether there is more to do at once
    _plans: dict[Tenant, _Plan] = field(default_factory=dict, init=False)
    _turns: Turns[Tenant] = field(default_factory=Turns, init=False)

    async def run_due(self) -> bool:
        """Run it for the companies for which it is due; returns whether there is more to do at once."""
        now = time.monotonic()
        plans = {tenant: self._plans.setdefault(tenant, _Plan()) for tenant in self.tenants}
        due = [tenant for tenant, plan in plans.items() if now >= plan.due]
        begun = [tenant for tenant in due if plans[tenant].begun]
        more = False
        for tenant in (*begun, *self._turns.take([tenant for tenant in due if not plans[tenant].begun])):
            more = await self._run_once(tenant, plans[tenant]) or more
        return more

    async def _run_once(self, tenant: Tenant, plan: _Plan) -> bool:
        try:
            more = await self.run(tenant)
        except StorageError as error:
            pause = plan.backoff.next()
            logger.warning(
                "%s: %s; again in %.0f s", self.name, error, pause, extra={"company_id": tenant.company}
            )
            plan.due, plan.begun = time.monotonic() + pause, False
            return False
        plan.backoff.reset()
        plan.due, plan.begun = 0.0 if more else time.monotonic() + self.every, more
        return more
