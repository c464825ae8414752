"""How a test that hangs is ended: with the stacks of all threads, and so that nothing takes it for something else."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Final

import pytest
import pytest_timeout  # type: ignore[import-untyped]

# Seconds until the next attempt: what is raised may end in a task that nobody waits for, and a clean-up may hang, too.
_AGAIN: Final = 30.0


class Hanging(BaseException):
    """A test took longer than its timeout. Hypothesis would take a failure of pytest's for one failed example."""


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """Raise `Hanging` in the main thread at the end of the timeout (s), and again while the test does not end."""
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None

    def end(_number: int, _frame: FrameType | None) -> None:
        try:
            pytest_timeout.timeout_sigalrm(item, settings)
        except pytest.fail.Exception as failure:
            raise Hanging(str(failure)) from None

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, _AGAIN)
    return True
