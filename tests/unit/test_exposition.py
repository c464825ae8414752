"""The page of metrics is made in slices and compressed only for those who ask for it."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from streams.monitoring import exposition
from streams.monitoring.exposition import compressed, gathered, wants_gzip


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", False),
        ("gzip", True),
        ("GZip", True),
        ("deflate, gzip;q=0.5, *;q=0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip;q=0.001", True),
        ("gzip;q=nothing", False),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("br, zstd", False),
    ],
)
def test_gzip_is_sent_only_where_it_is_accepted(header: str, wanted: bool) -> None:
    assert wants_gzip(header) is wanted


async def test_what_is_compressed_is_the_page() -> None:
    pieces = [b"a" * 1000, b"", b"b" * 100_000, b"\n"]
    packed = b"".join(await compressed(pieces))
    assert gzip.decompress(packed) == b"".join(pieces)
    assert len(packed) < 2000


async def test_nothing_is_compressed_to_an_empty_file() -> None:
    assert gzip.decompress(b"".join(await compressed([]))) == b""


async def test_the_event_loop_has_its_turn_after_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice ends with the first text after its time, here at once."""
    monkeypatch.setattr(exposition, "SLICE", 0.0)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    pieces = await gathered(f"line {number}\n" for number in range(100))
    task.cancel()
    assert len(pieces) == 100
    assert turns >= 99
    assert b"".join(pieces) == b"".join(b"line %d\n" % number for number in range(100))


async def test_many_texts_share_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "SLICE", 3600.0)
    assert await gathered(f"line {number}\n" for number in range(3)) == [b"line 0\nline 1\nline 2\n"]
