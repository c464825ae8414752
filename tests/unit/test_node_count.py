"""The number of NATS nodes: by address where they do not answer."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlparse

import pytest

from streams.jetstream.node_count import NodeCounter


@pytest.fixture(autouse=True)
def _no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("asyncio.open_connection", refuse)


@pytest.mark.parametrize(
    ("info", "servers", "nodes"),
    [
        ({}, ["nats://a:1", "nats://b:1", "nats://c:1"], 1),
        ({"cluster": "c"}, ["nats://a:1", "nats://b:1", "nats://c:1"], 3),
        ({"cluster": "c"}, ["nats://nats:4222", "nats://10.0.0.1:4222", "nats://10.0.0.2:4222"], 2),
        ({"cluster": "c"}, ["nats://u:p@127.0.0.1:1", "nats://127.0.0.1:2", "nats://127.0.0.1:3"], 3),
        # Each node advertises its addresses of both families.
        (
            {"cluster": "c"},
            ["nats://10.0.0.1:1", "nats://[fd00::1]:1", "nats://10.0.0.2:1", "nats://[fd00::2]:1"],
            2,
        ),
        ({"cluster": "c"}, ["nats://nats:1", "nats://10.0.0.1:1", "nats://[fd00::1]:1"], 1),
        ({"cluster": "c"}, ["nats://127.0.0.1:1", "nats://u:p@127.0.0.1:1"], 1),
        ({"cluster": "c"}, [], 1),
    ],
)
async def test_nodes_that_do_not_answer_are_counted_by_address(
    info: dict[str, Any], servers: list[str], nodes: int
) -> None:
    assert await NodeCounter().count(info, map(urlparse, servers)) == nodes
