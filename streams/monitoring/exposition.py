"""The page of all metrics in text format 0.0.4: made, compressed and sent in pieces, so that events go on meanwhile."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from aiohttp import hdrs, web

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Seconds of work between two turns of the event loop: an event waits for a few of them.
SLICE: Final = 0.0005
# Little is left to win: these pages compress to a twentieth, and the higher levels take three times as long.
_LEVEL: Final = 1
_GZIP: Final = 16 + zlib.MAX_WBITS
# Seconds in which a client has to take a piece; then its connection is closed.
SEND_SECONDS: Final = 30.0


async def gathered(texts: Iterable[str]) -> list[bytes]:
    """The texts in pieces, each made in about `SLICE` seconds; between them the event loop has its turns."""
    pieces: list[bytes] = []
    waiting = iter(texts)
    while piece := _piece(waiting):
        pieces.append(piece)
        await asyncio.sleep(0)
    return pieces


def _piece(waiting: Iterator[str]) -> bytes:
    """What of them can be made now."""
    until = time.perf_counter() + SLICE
    made = []
    for text in waiting:
        made.append(text)
        if time.perf_counter() >= until:
            break
    return "".join(made).encode()


def wants_gzip(accept_encoding: str) -> bool:
    """Whether a client that sends this header takes gzip (RFC 9110)."""
    qualities: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        coding, _, parameter = part.partition(";")
        name, _, value = parameter.partition("=")
        try:
            qualities[coding.strip()] = float(value) if name.strip() == "q" else 1.0
        except ValueError:
            qualities[coding.strip()] = 0.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


async def compressed(pieces: Iterable[bytes]) -> list[bytes]:
    """The pieces as gzip, made one by one in another thread, which leaves the interpreter to the event loop."""
    compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)
    parts = [await asyncio.to_thread(compressor.compress, piece) for piece in pieces]
    return [part for part in (*parts, compressor.flush()) if part]


async def send(request: web.Request, pieces: list[bytes]) -> web.StreamResponse:
    """Answer with the page, compressed for a client that asks for it.

    A client that does not take a piece within `SEND_SECONDS` is cut off: it holds the page in memory.
    """
    answer = web.StreamResponse(headers={hdrs.CONTENT_TYPE: CONTENT_TYPE, hdrs.VARY: hdrs.ACCEPT_ENCODING})
    if wants_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        pieces = await compressed(pieces)
        answer.headers[hdrs.CONTENT_ENCODING] = "gzip"
    answer.content_length = sum(map(len, pieces))
    await answer.prepare(request)
    if request.method != hdrs.METH_HEAD:
        for piece in pieces:
            await _write(request, answer, piece)
    await answer.write_eof()
    return answer


async def _write(request: web.Request, answer: web.StreamResponse, piece: bytes) -> None:
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await answer.write(piece)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not take the page") from None
