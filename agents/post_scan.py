"""The work that follows an agent's last history batch, a while later (PSS-1)."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from tables.post_scan import PostScanJobs

logger = logging.getLogger(__name__)


def utc_now() -> datetime.datetime:
    """The present."""
    return datetime.datetime.now(datetime.UTC)


async def run_due(jobs: PostScanJobs, company: str, clock: Callable[[], datetime.datetime] = utc_now) -> int:
    """Do all jobs of a company that are due and free; returns how many. Called from a timer, by every replica.

    Raises `tables.errors.StorageError`; the job in hand then comes due again.
    """
    done = 0
    while (claim := await jobs.claim(clock())) is not None:
        updated, more = 0, True
        while more:
            progress = await jobs.sync_page(claim, company, clock())
            updated, more = updated + progress.updated, progress.more
        await jobs.finish(claim)
        done += 1
        logger.info("post-scan sync of agent %s: %d contacts", claim.agent_id, updated)
    return done
