"""A TCP proxy whose connections can be cut, or held still without either end noticing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_CHUNK: Final = 64 * 1024


class Proxy:
    """Leads from a port of this machine to another one; in an `async with` statement open on entry.

    `rewrite` is applied to whole lines of what the target sends.
    """

    def __init__(self, target: int, rewrite: Callable[[bytes], bytes] | None = None) -> None:
        self.port = 0
        self._target = target
        self._rewrite = rewrite
        self._moving = asyncio.Event()
        self._moving.set()
        self._taking = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        """End all connections at once, and refuse new ones until `heal`."""
        self._taking = False
        self.drop()

    def drop(self) -> None:
        """End all connections at once; new ones are taken."""
        for task in self._tasks:
            task.cancel()

    def freeze(self) -> None:
        """Carry nothing any more, and end nothing: what is sent waits."""
        self._moving.clear()

    def heal(self) -> None:
        """Take connections, and carry what waits."""
        self._taking = True
        self._moving.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._taking:
                await self._connect(reader, writer)
        except asyncio.CancelledError:
            pass  # cut; the server's task must not end as cancelled, for asyncio would report that
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            carried = (self._carry(reader, back, None), self._carry(there, writer, self._rewrite))
            ways = [asyncio.ensure_future(way) for way in carried]
            try:
                # One end gone, the other is let go as well.
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                back.transport.abort()

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rewrite: Callable[[bytes], bytes] | None,
    ) -> None:
        begun = b""
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._moving.wait()
                if rewrite is not None:
                    lines, end, begun = (begun + data).rpartition(b"\n")
                    data = rewrite(lines + end)
                writer.write(data)
                await writer.drain()
