"""The work that follows an agent's last history batch, a while later (PSS-1)."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from events.subjects import Tenant
from tables.post_scan import Claim, Progress

logger = logging.getLogger(__name__)


class Jobs(Protocol):
    """What is needed of `tables.post_scan.PostScanJobs`."""

    def claim(self, now: datetime.datetime) -> Awaitable[Claim | None]:
        """Take a due job."""
        ...

    def sync_page(self, claim: Claim, company: str, now: datetime.datetime) -> Awaitable[Progress]:
        """Handle the next page of its contacts."""
        ...

    def finish(self, claim: Claim) -> Awaitable[None]:
        """Delete the job."""
        ...


def utc_now() -> datetime.datetime:
    """The present."""
    return datetime.datetime.now(datetime.UTC)


class PostScan:
    """Runs the due jobs of a tenant; called from a timer, by every replica."""

    def __init__(
        self, *, tables: Callable[[Tenant], Jobs], clock: Callable[[], datetime.datetime] = utc_now
    ) -> None:
        self._tables = tables
        self._clock = clock

    async def run_due(self, tenant: Tenant) -> int:
        """Do all jobs that are due and free; returns how many.

        Raises `tables.errors.StorageError`; the job in hand then comes due again.
        """
        jobs = self._tables(tenant)
        done = 0
        while (claim := await jobs.claim(self._clock())) is not None:
            updated, more = 0, True
            while more:
                progress = await jobs.sync_page(claim, tenant.company, self._clock())
                updated, more = updated + progress.updated, progress.more
            await jobs.finish(claim)
            done += 1
            logger.info("post-scan sync of agent %s: %d contacts", claim.agent_id, updated)
        return done
