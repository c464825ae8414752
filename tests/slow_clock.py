"""A NATS server whose clock is set back, simulated by rewriting the store times in its deliveries."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Final

from testkit.oracle import Version

# $JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<store time>.<pending>
_REPLY: Final = r"(\$JS\.ACK\.(?:[^. ]+\.[^. ]+\.)?%s\.[^. ]+\.\d+\.\d+\.\d+\.)(\d{19})(?=\.\d+)"


class SlowClock:
    """From `set_back` on, what is stored in `stream` (None: in any) has a store time `behind` seconds earlier."""

    def __init__(self, behind: float, stream: str | None = None) -> None:
        self.behind = int(behind * 1e9)
        self.since: int | None = None
        self.rewritten = 0
        name = r"[^. ]+" if stream is None else re.escape(stream)
        self._reply = re.compile((_REPLY % name).encode())

    def set_back(self, since: int | None = None) -> None:
        """Be behind for everything that is stored from this moment on (ns since 1970; None: now), redeliveries too."""
        self.since = time.time_ns() if since is None else since

    def told(self, stored: Version) -> Version:
        """The version that a worker is told, of an event that was stored with this one."""
        if self.since is None or stored.ns < self.since:
            return stored
        return replace(stored, ns=stored.ns - self.behind)

    def rewrite(self, data: bytes) -> bytes:
        """Lines of the server with the store times of this clock; the length stays. For a `Proxy`."""
        return data if self.since is None else self._reply.sub(self._rewritten, data)

    def _rewritten(self, found: re.Match[bytes]) -> bytes:
        before, ns = found.groups()
        assert self.since is not None
        if int(ns) < self.since:
            return found.group()
        self.rewritten += 1
        return b"%s%d" % (before, int(ns) - self.behind)
