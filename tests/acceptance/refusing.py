"""A way to PostgreSQL that can refuse new connections in the server's own words, as a server or a pooler does."""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import Final, Self

from tests.faults.proxy import Proxy

_SSL_REQUEST: Final = 80877103


class RefusingProxy:
    """Leads to a server, except while `refuse` is in force; in an `async with` statement open on entry."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.refused = 0
        self._way = Proxy(target)
        self._answer: bytes | None = None
        self._server: asyncio.Server | None = None

    def refuse(self, sqlstate: str, text: str) -> None:
        """End all connections, and answer new ones with this error."""
        fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text}
        body = b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0"
        self._answer = b"E" + struct.pack("!I", len(body) + 4) + body
        self._way.drop()

    def admit(self) -> None:
        """Let connections through."""
        self._answer = None

    async def __aenter__(self) -> Self:
        await self._way.__aenter__()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await self._way.__aexit__(kind, error, trace)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._answer is None:
                await self._lead(reader, writer)
            else:
                await self._refuse(reader, writer, self._answer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _refuse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes
    ) -> None:
        while True:
            length, code = struct.unpack("!II", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code != _SSL_REQUEST:
                break
            writer.write(b"N")
        writer.write(answer)
        await writer.drain()
        self.refused += 1
        writer.close()
        await writer.wait_closed()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._way.port)
        ways = [asyncio.ensure_future(_carry(*way)) for way in ((reader, back), (there, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            back.transport.abort()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64 * 1024):
        writer.write(data)
        await writer.drain()
