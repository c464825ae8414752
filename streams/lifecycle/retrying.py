"""Trying until it works: what a server says is waited out, what an operator has to change is not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

FIRST_WAIT: Final = 0.2
LONGEST_WAIT: Final = 15.0


class Fatal(Exception):
    """Waiting will not help: the operator has to change a setting."""


async def until_done(run: Callable[[], Awaitable[None]], waiting: Callable[[str], None]) -> None:
    """Call `run` until it returns, with growing waits; each failure's text goes to `waiting`.

    Raises `Fatal` if `run` does.
    """
    wait = FIRST_WAIT
    while True:
        try:
            return await run()
        except Fatal:
            raise
        except Exception as error:
            waiting(str(error) or type(error).__name__)
        await asyncio.sleep(wait)
        wait = min(wait * 1.5, LONGEST_WAIT)
