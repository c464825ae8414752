"""A proxy to NATS through which store times step back, as after a change to a leader whose clock is behind."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from streams.jetstream.permissions import ACK_PREFIX

_PREFIX: Final = ACK_PREFIX.encode()
_CHUNK: Final = 64 * 1024
# Tokens of `$JS.ACK...` up to the store time, without and with domain and account hash.
_SHORT: Final = 9
_TIME: Final = 7


class SlowClock:
    """Leads to the server at `target`; in an `async with` statement open on entry."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._since = 0
        self._behind = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where a worker connects to."""
        return f"nats://127.0.0.1:{self.port}"

    def set_back(self, seconds: float) -> None:
        """Whatever is stored from now on, has a store time so much earlier."""
        self._since = time.time_ns()
        self._behind = int(seconds * 1e9)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection("127.0.0.1", self._target)
                ways = [
                    asyncio.ensure_future(_carry(reader, back)),
                    asyncio.ensure_future(self._deliver(there, writer)),
                ]
                try:
                    # One end gone, the other is let go as well.
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    back.transport.abort()
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _deliver(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry what the server says, message by message."""
        while True:
            line = await reader.readuntil(b"\r\n")
            if line.startswith((b"MSG ", b"HMSG ")):
                words = line.split()
                body = await reader.readexactly(int(words[-1]) + 2)
                line = b" ".join(map(self._rewritten, words)) + b"\r\n" + body
            writer.write(line)
            await writer.drain()

    def _rewritten(self, word: bytes) -> bytes:
        """A reply subject with the store time of the slow clock; any other word as it is."""
        if not self._behind or not word.startswith(_PREFIX):
            return word
        tokens = word.split(b".")
        place = _TIME if len(tokens) == _SHORT else _TIME + 2
        stored = int(tokens[place])
        if stored >= self._since:
            tokens[place] = b"%d" % (stored - self._behind)
        return b".".join(tokens)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
