"""Work on the tables that no event waits for: each company at its own time, a failure delays only that company."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from events.subjects import Tenant
from tables.errors import StorageError

logger = logging.getLogger(__name__)

# Seconds between two looks at what is due.
LOOK_EVERY: Final = 5.0
FIRST_DELAY: Final = 5.0
LONGEST_DELAY: Final = 300.0


class _Next(NamedTuple):
    due: float = 0.0
    delay: float = FIRST_DELAY


class Rounds:
    """One task for every company: again after `every` seconds, or sooner, with growing delays, where it failed."""

    def __init__(
        self,
        what: str,
        tenants: Sequence[Tenant],
        every: float,
        task: Callable[[Tenant], Awaitable[bool]],
    ) -> None:
        """`task` returns whether there is more to do at once."""
        self._what = what
        self._tenants = tenants
        self._every = every
        self._task = task
        self._next: dict[Tenant, _Next] = {}

    async def run(self) -> bool:
        """Do what is due; whether more is due at once."""
        more = False
        for tenant in self._tenants:
            planned = self._next.get(tenant, _Next())
            if time.monotonic() >= planned.due:
                self._next[tenant] = await self._done(tenant, planned.delay)
                more = more or self._next[tenant].due == 0.0
        return more

    async def _done(self, tenant: Tenant, delay: float) -> _Next:
        """When this company's turn comes again."""
        try:
            more = await self._task(tenant)
        except StorageError as error:
            pause = delay * random.uniform(0.75, 1.25)
            logger.warning(
                "%s: %s; again in %.0f s", self._what, error, pause, extra={"company_id": tenant.company}
            )
            return _Next(time.monotonic() + pause, min(delay * 2, LONGEST_DELAY))
        return _Next(0.0 if more else time.monotonic() + self._every)
