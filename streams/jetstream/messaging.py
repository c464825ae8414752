"""Publishing, requests and subscriptions that fail at once when the server denies a permission."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import nats.errors
from nats.aio.msg import Msg

from events.errors import BrokerError
from streams.jetstream.client import NatsClient
from streams.jetstream.permissions import ANY, PUBLISH, SUBSCRIPTION, Denial, Permissions

FAILURES: Final = (nats.errors.Error, TimeoutError, OSError)
ANSWER_SECONDS: Final = 5.0
# Between two tries of a subscription that was denied.
RESUBSCRIBE_SECONDS: Final = 2.0


class Messaging:
    """Core NATS over one client. A denial is raised in the server's words, instead of a time-out."""

    def __init__(self, client: NatsClient, permissions: Permissions) -> None:
        self._client = client
        self._permissions = permissions
        # One at a time: an error about a limit does not name the subscription that was one too many.
        self._subscribing = asyncio.Lock()
        self._over_limit: set[str] = set()

    async def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish without a confirmation. Raises `BrokerError`; a denial is in `permissions` later."""
        try:
            await self._client.publish(subject, payload, reply)
        except FAILURES as error:
            raise BrokerError(f"NATS took nothing: {type(error).__name__}") from error

    async def may_publish(self, subject: str, payload: bytes, timeout: float) -> bool:
        """Publish; False if the server denies it. Raises `BrokerError` without an answer in `timeout` seconds."""
        started = time.monotonic()
        await self.send(subject, payload)
        if not await self._client.round_trip(timeout):
            raise BrokerError("NATS did not answer")
        if self._permissions.denied_since(PUBLISH, subject, started) is not None:
            return False
        self._permissions.granted(PUBLISH, subject)
        return True

    async def request(
        self, subject: str, body: bytes, timeout: float, headers: dict[str, Any] | None = None
    ) -> Msg:
        """The reply. Raises `BrokerError` as soon as a permission is denied, and errors of nats-py."""
        inbox = self._client.reply_subject
        if inbox and (denial := self._permissions.denial(SUBSCRIPTION, inbox)) is not None:
            raise BrokerError(str(denial))
        limit = asyncio.timeout(timeout)
        with self._permissions.pending(limit, subject, lambda: self._client.reply_subject) as pending:
            try:
                async with limit:
                    reply = await self._client.request(subject, body, timeout=timeout, headers=headers)
            except TimeoutError:
                if pending.denial is not None:
                    raise BrokerError(str(pending.denial)) from None
                raise
        self._permissions.granted(PUBLISH, subject)
        return reply

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> None:
        """Have `callback` called, one message at a time.

        Raises `BrokerError`, also when the server denies it: then nothing is subscribed. A subscription that is denied
        later is in `permissions`, and comes back with the permission.
        """
        async with self._subscribing:
            started = time.monotonic()
            try:
                # Without limits: nats-py drops what is over them, and our pull requests bound it already.
                subscription = await self._client.subscribe(
                    subject, queue, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0
                )
                await self._client.round_trip(ANSWER_SECONDS)
                if (denial := self._subscription_denial(subject, started)) is not None:
                    await subscription.unsubscribe()
                    raise BrokerError(str(denial))
            except FAILURES as error:
                raise BrokerError(f"cannot subscribe: {type(error).__name__}") from error

    def new_inbox(self) -> str:
        """A subject that nobody else uses."""
        return self._client.new_inbox()

    async def subscribe_again(self, subject: str) -> None:
        """Restore a subscription that the server may have dropped at a limit when the connection began."""
        if self._permissions.denial(SUBSCRIPTION, ANY) is not None:
            async with self._subscribing:
                await self._restore(subject)

    async def restore_subscriptions(self) -> None:
        """Restore denied subscriptions when they are permitted again, until cancelled."""
        while True:
            await asyncio.sleep(RESUBSCRIBE_SECONDS)
            for denial in self._permissions.denials(SUBSCRIPTION):
                await self._restore(denial.subject)

    async def _restore(self, subject: str) -> None:
        started = time.monotonic()
        try:
            known = await self._client.subscribe_again(subject)
        except FAILURES:
            return
        if known and await self._client.round_trip(ANSWER_SECONDS):
            self._subscription_denial(subject, started)

    def _subscription_denial(self, subject: str, started: float) -> Denial | None:
        """The denial of a subscription that was requested at `started`; None if it was accepted."""
        denial = self._permissions.denied_since(SUBSCRIPTION, subject, started)
        over_limit = self._permissions.denied_since(SUBSCRIPTION, ANY, started)
        if over_limit is not None:
            self._over_limit.add(subject)
        elif denial is None:
            self._permissions.granted(SUBSCRIPTION, subject)
            self._over_limit.discard(subject)
            if not self._over_limit:
                self._permissions.granted(SUBSCRIPTION, ANY)
        return denial or over_limit
