"""PostgreSQL over TLS, by what the connection URL says.

The embedded PostgreSQL is built without TLS, so a front that speaks it stands before the real server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit

import pytest
import trustme

from tables.connection.pool import Database
from tables.errors import Unavailable

_TLS_WANTED: Final = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")


class Front:
    """Answers PostgreSQL's wish for TLS, and hands on what it decrypts; counts who came without one."""

    def __init__(self, dsn: str, context: ssl.SSLContext) -> None:
        self._behind = urlsplit(dsn)
        self._context = context
        self._server: asyncio.Server | None = None
        self.secured = 0
        self.plain = 0
        self.ca = self.other_ca = ""

    async def __aenter__(self) -> Front:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    def dsn(self, **options: str) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://postgres@127.0.0.1:{port}{self._behind.path}?{urlencode(options)}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            if await reader.readexactly(8) != _TLS_WANTED:
                self.plain += 1
                writer.close()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
            self.secured += 1
            assert self._behind.port is not None
            behind, forth = await asyncio.open_connection("127.0.0.1", self._behind.port)
            await asyncio.gather(_pipe(reader, forth), _pipe(behind, writer))


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    target.close()


@pytest.fixture
async def front(database_dsn: str, tmp_path: Path) -> AsyncIterator[Front]:
    authority, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with Front(database_dsn, context) as front:
        front.ca, front.other_ca = str(tmp_path / "ca.pem"), str(tmp_path / "other.pem")
        authority.cert_pem.write_to_path(front.ca)
        other.cert_pem.write_to_path(front.other_ca)
        yield front


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_the_mode_in_the_url_is_obeyed(front: Front, mode: str) -> None:
    database = Database(front.dsn(sslmode=mode, sslrootcert=front.ca), size=1)
    await database.open()
    await database.ping()
    await database.close()

    assert front.secured == 1
    assert front.plain == 0


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_a_server_that_nobody_vouches_for_is_refused(front: Front, mode: str) -> None:
    database = Database(front.dsn(sslmode=mode, sslrootcert=front.other_ca), size=1)

    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await database.open()
    assert front.plain == 0


@pytest.mark.parametrize("mode", ["require", "verify-full"])
async def test_a_server_without_tls_is_refused_where_it_is_required(database_dsn: str, mode: str) -> None:
    database = Database(f"{database_dsn}?sslmode={mode}", size=1)

    with pytest.raises(Unavailable):
        await database.open()
