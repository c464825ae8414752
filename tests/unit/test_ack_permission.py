"""When the permission to acknowledge counts as known."""

from __future__ import annotations

from typing import cast

from streams.jetstream.ack_permission import AckPermission
from streams.jetstream.messaging import Messaging


class Server:
    """Grants everything; doubts of `acks` come before its first answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.acks: AckPermission | None = None

    async def may_publish(self, subject: str, payload: bytes, timeout: float) -> bool:
        self.asked += 1
        if self.acks is not None:
            self.acks.doubt()
            self.acks = None
        return True


async def test_a_right_is_tried_once_and_again_after_a_doubt_that_came_while_it_was_tried() -> None:
    server = Server()
    acks = AckPermission(cast(Messaging, server), "s", "c")
    server.acks = acks
    for asked in (1, 2, 2):
        assert await acks.granted(1)
        assert server.asked == asked
