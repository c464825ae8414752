"""Store a batch whatever PostgreSQL does: split it around guilty events, sit outages out (design 5, point 4)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.work import Unit
from streams.errors import Crashed, EventError, Invalid, NotFound, Rejected, TimedOut, Unstored
from tables.errors import BadData, Contended, Expired, Failed, StorageError, Unavailable
from tables.refusals import Refusal
from tables.tenant import Change

logger = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
# An event alone that runs into a time limit this often is to blame itself.
TIMEOUTS_OF_ONE: Final = 3
# Nobody is in the way this often: the "stale plan" (0A000) is then a feature that the server does not have.
CONTENTIONS_OF_ONE: Final = 10

Write = Callable[[Sequence[Change]], Awaitable[list[Refusal]]]


class Pauses:
    """Growing waits with jitter, for an outage of unknown length."""

    def __init__(self) -> None:
        self._next = FIRST_PAUSE

    async def wait(self) -> None:
        """Sleep a little longer than the last time."""
        await asyncio.sleep(self._next * random.uniform(0.5, 1.0))
        self._next = min(self._next * 2, LONGEST_PAUSE)


@dataclass(slots=True)
class Part:
    """Units that are written in one transaction, and how often that ran out of time."""

    units: Sequence[Unit]
    timeouts: int = 0
    contentions: int = 0

    @property
    def alone(self) -> bool:
        """Whether there is nobody else to blame."""
        return len(self.units) == 1

    def halves(self) -> list[Part]:
        """Both halves, the second first: the parts are taken from the end."""
        middle = len(self.units) // 2
        return [Part(self.units[middle:]), Part(self.units[:middle])]


class Health(Protocol):
    """Told when something has to wait for a server, and when it goes on."""

    def paused(self, waiter: str, reason: str) -> None:
        """`waiter` cannot go on for this reason."""
        ...

    def resumed(self, waiter: str) -> None:
        """`waiter` goes on."""
        ...


class Storing:
    """Writes units; each unit that cannot be stored gets its error, an outage never does."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def store(self, units: Sequence[Unit], write: Write) -> None:
        """Write all units, in order; returns when each one is stored or carries its error.

        Waits for as long as the database cannot be used.
        """
        parts = [Part(units)] if units else []
        pauses = Pauses()
        while parts:
            part = parts.pop()
            try:
                refusals = await write([unit.change for unit in part.units])
            except Contended as error:
                parts.extend(await self._contended(part, error, pauses))
            except Unavailable as error:
                parts.append(part)
                self._health.paused("postgres", str(error))
                await pauses.wait()
            except Expired as error:
                parts.extend(self._expired(part, error))
                self._health.paused("postgres", str(error))
                await pauses.wait()
            except Exception as error:
                parts.extend(_divide(part, _blame(error)))
            else:
                pauses = Pauses()
                self._health.resumed("postgres")
                _refuse(part.units, refusals)

    @staticmethod
    async def _contended(part: Part, error: Contended, pauses: Pauses) -> list[Part]:
        part.contentions += 1
        if part.contentions > CONTENTIONS_OF_ONE:
            return _divide(part, Unstored(f"database: {error}"))
        if part.contentions > 1:
            await pauses.wait()
        return [part]

    @staticmethod
    def _expired(part: Part, error: Expired) -> list[Part]:
        part.timeouts += 1
        if part.timeouts < TIMEOUTS_OF_ONE:
            return [part]
        return _divide(part, TimedOut(f"database: {error}"))


def _divide(part: Part, error: EventError) -> list[Part]:
    if not part.alone:
        return part.halves()
    part.units[0].error = error
    return []


def _blame(error: Exception) -> EventError:
    """What an event alone is told when writing it failed."""
    if isinstance(error, BadData):
        return Rejected(f"database: {error}")
    if isinstance(error, Failed | StorageError):
        return Unstored(f"database: {error}")
    logger.error("unexpected exception while storing an event", exc_info=error)
    return Crashed(f"unexpected {type(error).__name__} while storing")


def _refuse(units: Sequence[Unit], refusals: Sequence[Refusal]) -> None:
    if not refusals:
        return
    by_ref = {unit.change.ref: unit for unit in units}
    for refusal in refusals:
        by_ref[refusal.ref].error = (
            NotFound(f"{_entity(by_ref[refusal.ref].change)} to update not found")
            if refusal.reason == "not_found"
            else Invalid("validation failed: company_id is not the company of the stored row")
        )


def _entity(change: Change) -> str:
    return type(change).__name__.removesuffix("Patch").removesuffix("Row").lower()
