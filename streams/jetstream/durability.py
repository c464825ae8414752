"""What a stream's configuration says against its durability; its server's `sync_interval` is told to no client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def weaknesses(config: Mapping[str, Any]) -> Iterator[str]:
    """One sentence, with what to do, for each way in which a stream confirms more than it can keep.

    `config` is the one of a STREAM.INFO answer. Servers before 2.12 have no `persist_mode`, and never confirm so early.
    """
    if config.get("storage") == "memory":
        yield (
            "storage is memory: a restart of the server loses what it has confirmed. "
            "Make the stream anew with storage file"
        )
    if config.get("persist_mode") == "async":
        yield (
            "persist_mode is async: events are confirmed before they are written, and a crash loses them. It cannot "
            "be changed: make the stream anew without it"
        )
