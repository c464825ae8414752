"""The connection of the process to NATS and its JetStream API."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import mode
import msgspec
import nats.errors
from nats.aio.msg import Msg

from events.delivery import TooLarge
from events.errors import BrokerError
from streams.config.credentials import ANONYMOUS, Login, host
from streams.jetstream.async_errors import AsyncErrors
from streams.jetstream.availability import CHECK_EVERY, LEAVE_AFTER, AvailabilityCheck
from streams.jetstream.client import NatsClient, refuses_credentials
from streams.jetstream.messaging import FAILURES, Messaging
from streams.jetstream.node_count import NodeCounter
from streams.jetstream.nodes import Nodes
from streams.jetstream.permissions import Permissions
from streams.jetstream.publishing import is_new, wire_size
from streams.jetstream.stream_reader import ApiError

logger = logging.getLogger(__name__)

OLDEST_SERVER: Final = (2, 10)
# Three unanswered pings end a connection, for the server and for us.
PING_SECONDS: Final = 5
# Bytes that wait for a server that restarts; acks beyond them fail, and their messages are delivered again.
PENDING_BYTES: Final = 16 * 1024 * 1024
# A server that has just started has no JetStream for a moment.
NO_JETSTREAM_SECONDS: Final = 5.0
REQUEST_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0


class Unusable(Exception):
    """The server is too old, or has no JetStream; waiting does not help."""


class Broker(mode.Service):
    """Connects, reconnects for ever, publishes to streams and calls the JetStream API.

    Started it connects in the background; `wait_connected` returns when it can be used. It implements
    `events.delivery.Publisher`. When the client closes the connection for good (a protocol error), `on_closed` is
    called, or the service crashes if there is none: the worker must end. Refused credentials are tried again, with what
    their file has by then. A server whose JetStream did not work for `leave_after` seconds is left for another one.
    `domain` is the JetStream domain, empty for the server's own.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        name: str,
        on_closed: Callable[[], None] | None = None,
        on_reconnect: Callable[[], None] | None = None,
        login: Login = ANONYMOUS,
        domain: str = "",
        check_every: float = CHECK_EVERY,
        leave_after: float = LEAVE_AFTER,
    ) -> None:
        super().__init__()
        self._urls = list(urls)
        self._hosts = ", ".join(host(url) for url in urls)  # without their credentials
        self._name = name
        self._on_closed = on_closed
        self._on_reconnect = on_reconnect
        self._login = login
        self.permissions = Permissions()
        self._prefix = f"$JS.{domain}.API." if domain else "$JS.API."
        self._client = NatsClient(login, self._urls, self.permissions.denied)
        self.messaging = Messaging(self._client, self.permissions)
        self._nodes = Nodes()
        self._node_counter = NodeCounter()
        self.jetstream = AvailabilityCheck(
            client=self._client,
            messaging=self.messaging,
            nodes=self._nodes,
            info_subject=self.api_subject("INFO"),
            domain=domain,
            check_every=check_every,
            leave_after=leave_after,
        )
        self._up = asyncio.Event()
        self._decided = asyncio.Event()
        self._connecting: asyncio.Future[Any] | None = None
        self._unusable: Unusable | None = None
        self._errors = AsyncErrors("NATS is not connected yet")
        self._watchers: list[Callable[[bool], None]] = []

    @property
    def connected(self) -> bool:
        """Whether the connection can be used now."""
        return self._up.is_set() and self._client.is_connected

    @property
    def problem(self) -> str | None:
        """What does not work with NATS, for `/ready`; None while all works."""
        if self.permissions.problem is not None:
            return self.permissions.problem
        return self.jetstream.problem if self.connected else self._errors.last

    @property
    def max_payload(self) -> int:
        """The server's limit for body and headers of one message, bytes."""
        return self._client.max_payload

    async def count_nodes(self) -> int:
        """How many NATS nodes there are; see `NodeCounter`."""
        return await self._node_counter.count(self._client.server_info, self._client.servers)

    async def wait_connected(self) -> None:
        """Return once the connection can be used. Raises `Unusable`."""
        await self._decided.wait()
        if self._unusable is not None:
            raise self._unusable
        await self._up.wait()

    def watch(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` with False when the connection is lost and with True when it is back."""
        self._watchers.append(callback)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """See `events.delivery.Publisher`; False if the server answers `duplicate`, and so has stored nothing now."""
        if wire_size(body, headers) > self.max_payload:
            raise TooLarge(f"{wire_size(body, headers)} bytes, the server takes {self.max_payload}")
        try:
            confirmation = await self._request(subject, body, dict(headers) or None)
        except BrokerError as failed:
            if isinstance(failed.__cause__, nats.errors.NoRespondersError):
                raise BrokerError("no stream has this subject") from failed
            raise
        return is_new(confirmation.data)

    def api_subject(self, subject: str) -> str:
        """The full subject of a JetStream API request, in our domain."""
        return self._prefix + subject

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        """The answer of the JetStream API to a request. Raises `ApiError` and `BrokerError`."""
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self._request(self.api_subject(subject), payload)
        reply: dict[str, Any] = msgspec.json.decode(answer.data)
        if error := reply.get("error"):
            raise ApiError(error.get("err_code") or error.get("code", 0), error.get("description", ""))
        return reply

    async def flush(self, timeout: float = REQUEST_SECONDS) -> bool:
        """Wait until the server has read what was sent, at most `timeout` seconds; False if it did not."""
        return self.connected and await self._client.round_trip(timeout)

    async def on_start(self) -> None:
        """Begin to connect."""
        self._connecting = self.add_future(self._connect())

    async def on_stop(self) -> None:
        """Send what is pending and close."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client.is_connected or self._client.is_reconnecting:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._client.close()
            except FAILURES as error:
                logger.debug("closing the connection: %s", type(error).__name__)
        self._up.clear()

    async def _connect(self) -> None:
        await self._client.connect(
            self._urls,
            name=self._name,
            error_cb=self._errored,
            disconnected_cb=self._disconnected,
            reconnected_cb=self._reconnected,
            closed_cb=self._closed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            reconnect_to_server_handler=self._nodes.choose,
            ping_interval=PING_SECONDS,
            pending_size=PENDING_BYTES,
            **self._login.options(),
        )
        self._note_connected()
        self.add_future(self.jetstream.run())
        self.add_future(self.messaging.restore_subscriptions())
        try:
            await self._verify()
        except Unusable as error:
            self._unusable = error
            self._errors.last = str(error)
        else:
            self._up.set()
            logger.info("connected to NATS at %s", self._client.address)
        self._decided.set()

    async def _verify(self) -> None:
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            raise Unusable(
                f"NATS at {self._hosts} is version {version.major}.{version.minor}; 2.10 is needed"
            )
        usable_until = time.monotonic()
        while (state := await self.jetstream.check()) not in ("works", "unavailable"):
            # A domain is reached over links between servers, which come and go.
            if state != "absent" or self.jetstream.domain or self.jetstream.has_untried_servers:
                usable_until = time.monotonic()
            elif time.monotonic() - usable_until > NO_JETSTREAM_SECONDS:
                raise Unusable(f"NATS at {self._hosts} has no JetStream for this account")
            if self._client.is_connected:
                self._errors.report(self.jetstream.failure)
            await asyncio.sleep(0.25)

    async def _request(self, subject: str, body: bytes, headers: dict[str, Any] | None = None) -> Msg:
        deadline = time.monotonic() + REQUEST_SECONDS
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                # nats-py sends what it gets while disconnected later, when the sender has given up.
                await self._up.wait()
            return await self.messaging.request(subject, body, deadline - time.monotonic(), headers)
        except FAILURES as error:
            raise BrokerError(f"NATS did not answer: {type(error).__name__}") from error

    async def _errored(self, error: Exception) -> None:
        text = str(error).removeprefix("nats: ").strip("'")
        where = f"NATS at {self._client.address or self._hosts}"
        if refuses_credentials(text):
            self._errors.report(f"{where} refuses our credentials ({text}): {self._login.advice()}")
        else:
            self._errors.report(f"{where}: {type(error).__name__}: {text}")

    async def _disconnected(self) -> None:
        self._up.clear()
        self._nodes.note_disconnected()
        self.permissions.forget()
        self._notify(False)
        if not self.should_stop:
            self._errors.report_disconnect(
                f"the connection to NATS at {self._client.address or self._hosts} is lost"
            )

    async def _reconnected(self) -> None:
        self._note_connected()
        if (
            await self.jetstream.leave_if_avoided()
            or not self._decided.is_set()
            or self._unusable is not None
        ):
            return
        self._up.set()
        logger.info("connected to NATS again, at %s", self._client.address)
        if self._on_reconnect is not None:
            self._on_reconnect()
        self._notify(True)

    def _note_connected(self) -> None:
        self._nodes.note_connected(self._client.address, str(self._client.server_info.get("server_id", "")))
        self.jetstream.note_connected()
        self._errors.clear()

    def _notify(self, up: bool) -> None:
        for watcher in tuple(self._watchers):
            watcher(up)

    async def _closed(self) -> None:
        if self.should_stop:
            return
        problem = f"the connection to NATS was closed: {self._client.last_error}"
        self._errors.last = problem
        logger.error("%s", problem)
        if self._on_closed is not None:
            self._on_closed()
        else:
            await self.crash(ConnectionError(problem))
