"""Repeats a step of the start until it succeeds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from events.backoff import Backoff

FIRST_WAIT: Final = 0.2
LONGEST_WAIT: Final = 15.0


class Fatal(Exception):
    """Waiting will not help: the operator has to change a setting."""


async def until_done(run: Callable[[], Awaitable[None]], waiting: Callable[[str], None]) -> None:
    """Call `run` until it returns, with a back-off; each failure's text is passed to `waiting`.

    Raises `Fatal` if `run` does.
    """
    backoff = Backoff(FIRST_WAIT, LONGEST_WAIT)
    while True:
        try:
            return await run()
        except Fatal:
            raise
        except Exception as error:
            waiting(str(error) or type(error).__name__)
        await backoff.wait()
