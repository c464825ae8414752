"""A TCP proxy whose connections can be cut, frozen, refused, or rewritten."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self

_CHUNK: Final = 64 * 1024
_SSL_REQUEST: Final = 80877103


class Proxy:
    """Forwards a port of this machine to another one; in an `async with` statement open on entry.

    `rewrite` is applied to whole lines of what the target sends.
    """

    def __init__(self, target: int, rewrite: Callable[[bytes], bytes] | None = None) -> None:
        self.port = 0
        self.refused = 0
        self._target = target
        self._rewrite = rewrite
        self._moving = asyncio.Event()
        self._moving.set()
        self._accepting = True
        self._refusal: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def cut(self) -> None:
        """End all connections at once, and refuse new ones until `heal`."""
        self._accepting = False
        self.drop()

    def drop(self) -> None:
        """End all connections at once; new ones are accepted."""
        for task in self._tasks:
            task.cancel()

    def freeze(self) -> None:
        """Forward nothing, and end nothing: what is sent waits."""
        self._moving.clear()

    def refuse(self, sqlstate: str, text: str) -> None:
        """End all connections, and answer new ones with this error of PostgreSQL; counted in `refused`."""
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text}
        body = b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0"
        self._refusal = b"E" + struct.pack("!I", len(body) + 4) + body
        self.drop()

    def heal(self) -> None:
        """Accept connections, and forward what waits."""
        self._accepting = True
        self._refusal = None
        self._moving.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._refusal is not None:
                await self._answer(reader, writer, self._refusal)
            elif self._accepting:
                await self._connect(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # cut; the server's task must not end as cancelled, for asyncio would report that
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: bytes
    ) -> None:
        while True:
            length, code = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code != _SSL_REQUEST:
                break
            writer.write(b"N")
        writer.write(refusal)
        await writer.drain()
        self.refused += 1
        writer.close()
        await writer.wait_closed()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        forwarded = (self._forward(reader, back, None), self._forward(there, writer, self._rewrite))
        directions = [asyncio.ensure_future(one) for one in forwarded]
        try:
            # When one end is gone, the other connection is closed as well.
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            back.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        rewrite: Callable[[bytes], bytes] | None,
    ) -> None:
        partial = b""
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._moving.wait()
                if rewrite is not None:
                    lines, end, partial = (partial + data).rpartition(b"\n")
                    data = rewrite(lines + end)
                writer.write(data)
                await writer.drain()
