"""Sending, asking and subscribing over a connection to NATS whose server may deny the right to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg

from events.errors import BrokerError
from streams.jetstream.client import NatsClient
from streams.jetstream.permissions import ANY, PUBLISH, SUBSCRIPTION, Denial, Permissions

FAILURES: Final = (nats.errors.Error, TimeoutError, OSError)
ANSWER_SECONDS: Final = 5.0
# Between two tries of a subscription that was refused.
SUBSCRIBE_AGAIN: Final = 2.0

_HEADER_FRAME: Final = len(b"NATS/1.0\r\n\r\n")
_HEADER_LINE: Final = len(b": \r\n")


class NatsLink:
    """Tells a denied right as such, with the server's words, instead of waiting for an answer that cannot come."""

    def __init__(self, client: NatsClient, permissions: Permissions) -> None:
        self._client = client
        self._permissions = permissions
        # One at a time: a limit that was reached is told without the subscription that was one too many.
        self._turn = asyncio.Lock()
        self._over_limit: set[str] = set()

    async def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish without a confirmation. Raises `BrokerError`; a denied right shows later, in `permissions`."""
        try:
            await self._client.publish(subject, payload, reply)
        except FAILURES as error:
            raise BrokerError(f"NATS took nothing: {type(error).__name__}") from error

    async def may_publish(self, subject: str, payload: bytes, timeout: float) -> bool:
        """See `streams.jetstream.broker.Broker.may_publish`."""
        asked = time.monotonic()
        await self.send(subject, payload)
        if not await self._client.round_trip(timeout):
            raise BrokerError("NATS did not answer")
        if self._permissions.refused_since(PUBLISH, subject, asked) is not None:
            return False
        self._permissions.allowed(PUBLISH, subject)
        return True

    async def ask(
        self, subject: str, body: bytes, timeout: float, headers: dict[str, Any] | None = None
    ) -> Msg:
        """The answer to a request. Raises `BrokerError` as soon as a right is denied, and errors of nats-py."""
        inbox = self._client.answers_subject
        if inbox and (denial := self._permissions.refusal(SUBSCRIPTION, inbox)) is not None:
            raise BrokerError(str(denial))
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                with self._permissions.waiting(limit, subject, lambda: self._client.answers_subject):
                    answer = await self._client.request(subject, body, timeout=timeout, headers=headers)
        except TimeoutError:
            if (denial := self._permissions.ended(limit)) is not None:
                raise BrokerError(str(denial)) from None
            raise
        self._permissions.allowed(PUBLISH, subject)
        return answer

    async def subscribe(self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str) -> None:
        """Have `callback` called, one message at a time.

        Raises `BrokerError`, also when the server denies the right: then nothing is subscribed. A right that is
        taken away later is in `permissions`, and the subscription comes back with it.
        """
        async with self._turn:
            asked = time.monotonic()
            try:
                # Without limits: nats-py drops what is over them, and our pull requests bound it already.
                subscription = await self._client.subscribe(
                    subject, queue, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0
                )
                await self._client.round_trip(ANSWER_SECONDS)
                if (denial := self._outcome(subject, asked)) is not None:
                    await subscription.unsubscribe()
                    raise BrokerError(str(denial))
            except FAILURES as error:
                raise BrokerError(f"cannot subscribe: {type(error).__name__}") from error

    async def subscribe_again(self, subject: str) -> None:
        """Bring back a subscription that the server may have dropped at a limit when the connection began."""
        if self._permissions.refusal(SUBSCRIPTION, ANY) is not None:
            async with self._turn:
                await self._restore(subject)

    def _outcome(self, subject: str, asked: float) -> Denial | None:
        """What the server had against a subscription that was asked for at that moment; None if it is there."""
        denial = self._permissions.refused_since(SUBSCRIPTION, subject, asked)
        over = self._permissions.refused_since(SUBSCRIPTION, ANY, asked)
        if over is not None:
            self._over_limit.add(subject)
        elif denial is None:
            self._permissions.allowed(SUBSCRIPTION, subject)
            self._over_limit.discard(subject)
            if not self._over_limit:
                self._permissions.allowed(SUBSCRIPTION, ANY)
        return denial or over

    async def restore_subscriptions(self) -> None:
        """Bring back, until cancelled, what the server dropped for want of a right, once that is there again."""
        while True:
            await asyncio.sleep(SUBSCRIBE_AGAIN)
            for denial in self._permissions.refused(SUBSCRIPTION):
                await self._restore(denial.subject)

    async def _restore(self, subject: str) -> None:
        asked = time.monotonic()
        try:
            known = await self._client.subscribe_again(subject)
        except FAILURES:
            return
        if known and await self._client.round_trip(ANSWER_SECONDS):
            self._outcome(subject, asked)


def wire_size(body: bytes, headers: Mapping[str, str]) -> int:
    """Bytes that the server counts against its payload limit: body and encoded headers."""
    if not headers:
        return len(body)
    lines = sum(len(key.encode()) + len(value.encode()) + _HEADER_LINE for key, value in headers.items())
    return len(body) + _HEADER_FRAME + lines
