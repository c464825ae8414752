"""The connection to NATS: one a process, kept for ever, and what is published through it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import mode
import msgspec
import nats.errors
from nats.aio.client import Server
from nats.aio.msg import Msg

from streams.cluster import node_count
from streams.delivery import TooLarge
from streams.errors import BrokerFailed
from streams.login import ANONYMOUS, Login, client, host
from streams.stored import ApiError

logger = logging.getLogger(__name__)

OLDEST_SERVER: Final = (2, 10)
# The server decides after three unanswered pings that we are gone; so do we, instead of after minutes.
PING_SECONDS: Final = 5
MAX_RECONNECT_WAIT: Final = 2.0
# Acks that wait for the server while it restarts; over it they fail, and the messages come again.
PENDING_BYTES: Final = 16 * 1024 * 1024
LOG_EVERY: Final = 60.0
# A server that has just started answers so for a moment, one without JetStream always.
JETSTREAM_PATIENCE: Final = 5.0
REQUEST_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0

_FAILURES: Final = (nats.errors.Error, TimeoutError, OSError)
_JETSTREAM_DISABLED: Final = frozenset((10039, 10076))
_MESSAGE_TOO_LARGE: Final = 10054
_HEADER_FRAME: Final = len(b"NATS/1.0\r\n\r\n")
_HEADER_LINE: Final = len(b": \r\n")


class Unusable(Exception):
    """The server cannot serve us, however long we wait: it is too old, or has no JetStream."""


class Broker(mode.Service):
    """Connects, reconnects for ever, publishes and asks the JetStream API.

    Started it connects in the background; `wait_connected` tells when it can be used. It implements
    `streams.delivery.Publisher`. When the client gives the connection up for good (the server refused us),
    `on_closed` is called, or the service crashes if there is none: the worker must end.
    """

    def __init__(
        self,
        *,
        urls: Sequence[str],
        name: str,
        on_closed: Callable[[], None] | None = None,
        on_reconnect: Callable[[], None] | None = None,
        publish_timeout: float = REQUEST_SECONDS,
        login: Login = ANONYMOUS,
    ) -> None:
        super().__init__()
        self._urls = list(urls)
        self._hosts = ", ".join(host(url) for url in urls)  # without their credentials
        self._name = name
        self._on_closed = on_closed
        self._on_reconnect = on_reconnect
        self._publish_timeout = publish_timeout
        self._login = login
        self._client = client(login, self._urls)
        self._up = asyncio.Event()
        self._decided = asyncio.Event()
        self._connecting: asyncio.Future[Any] | None = None
        self._unusable: Unusable | None = None
        self._problem: str | None = "NATS is not connected yet"
        self._logged: dict[str, float] = {}
        self._watchers: list[Callable[[bool], None]] = []
        self._closing = False

    @property
    def connected(self) -> bool:
        """Whether what is sent now reaches a server that can serve us."""
        return self._up.is_set() and self._client.is_connected

    @property
    def problem(self) -> str | None:
        """Why it is not connected, for `/ready`; None while it is."""
        return None if self.connected else self._problem or "NATS is not connected"

    @property
    def max_payload(self) -> int:
        """The server's limit for body and headers of one message, bytes."""
        return self._client.max_payload

    @property
    def nodes(self) -> int:
        """How many NATS nodes there are, as far as is known; see `streams.cluster`."""
        return node_count(self._client._server_info, self._client.servers)

    async def wait_connected(self) -> None:
        """Return once the server answers. Raises `Unusable`."""
        await self._decided.wait()
        if self._unusable is not None:
            raise self._unusable
        await self._up.wait()

    def watch(self, callback: Callable[[bool], None]) -> None:
        """Call `callback` with False when the connection is lost and with True when it is back."""
        self._watchers.append(callback)

    async def publish(self, subject: str, body: bytes, headers: Mapping[str, str]) -> None:
        """See `streams.delivery.Publisher`."""
        await self.publish_once(subject, body, headers)

    async def publish_once(self, subject: str, body: bytes, headers: Mapping[str, str]) -> bool:
        """As `publish`; False if the server answers `duplicate`, and so has stored nothing now."""
        if wire_size(body, headers) > self.max_payload:
            raise TooLarge(f"{wire_size(body, headers)} bytes, the server takes {self.max_payload}")
        try:
            answer = await self._request(subject, body, self._publish_timeout, dict(headers) or None)
        except BrokerFailed as failed:
            if isinstance(failed.__cause__, nats.errors.NoRespondersError):
                raise BrokerFailed("no stream has this subject") from failed
            raise
        confirmation = msgspec.json.decode(answer.data)
        if (error := confirmation.get("error")) is None:
            return not confirmation.get("duplicate", False)
        if error.get("err_code") == _MESSAGE_TOO_LARGE:
            raise TooLarge("the stream takes no message of this size")
        raise BrokerFailed(f"NATS did not store it: {error.get('description')} ({error.get('err_code')})")

    async def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish without a confirmation, as acks and pull requests are. Raises `BrokerFailed`."""
        try:
            await self._client.publish(subject, payload, reply)
        except _FAILURES as error:
            raise BrokerFailed(f"NATS took nothing: {type(error).__name__}") from error

    async def api(self, subject: str, body: object = None) -> dict[str, Any]:
        """The answer of the JetStream API to `$JS.API.<subject>`. Raises `ApiError` and `BrokerFailed`."""
        payload = b"" if body is None else msgspec.json.encode(body)
        answer = await self._request(f"$JS.API.{subject}", payload, REQUEST_SECONDS)
        reply: dict[str, Any] = msgspec.json.decode(answer.data)
        if "error" in reply:
            error = reply["error"]
            raise ApiError(error.get("err_code") or error.get("code", 0), error.get("description", ""))
        return reply

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], queue: str = ""
    ) -> None:
        """Have `callback` called, one message at a time, until the broker stops. Raises `BrokerFailed`."""
        try:
            # Without limits: nats-py drops what is over them, and our pull requests bound it already.
            await self._client.subscribe(
                subject, queue, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0
            )
        except _FAILURES as error:
            raise BrokerFailed(f"cannot subscribe: {type(error).__name__}") from error

    def inbox(self) -> str:
        """A subject of our own."""
        return self._client.new_inbox()

    async def flush(self, timeout: float = REQUEST_SECONDS) -> bool:
        """Wait until the server has read what was sent, at most `timeout` seconds; False if it did not.

        By a request: nats-py's own flush, once timed out, breaks its read loop when the answer comes.
        """
        if not self.connected:
            return False
        try:
            await self._request("$JS.API.INFO", b"", timeout)
        except BrokerFailed:
            return False
        return True

    async def on_start(self) -> None:
        """Begin to connect."""
        self._connecting = self.add_future(self._connect())

    async def on_stop(self) -> None:
        """Send what is pending and close."""
        self._closing = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client.is_connected or self._client.is_reconnecting:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._client.close()
            except _FAILURES as error:
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
            reconnect_to_server_handler=_next_server,
            ping_interval=PING_SECONDS,
            pending_size=PENDING_BYTES,
            **self._login.options(),
        )
        try:
            await self._verify()
        except Unusable as error:
            self._unusable = error
            self._problem = str(error)
        else:
            self._up.set()
            logger.info("connected to NATS at %s", self._hosts)
        self._decided.set()

    async def _verify(self) -> None:
        version = self._client.connected_server_version
        if (version.major, version.minor) < OLDEST_SERVER:
            raise Unusable(
                f"NATS at {self._hosts} is version {version.major}.{version.minor}; 2.10 is needed"
            )
        refused_since = time.monotonic()
        while (answer := await self._has_jetstream()) is not True:
            if answer is None:
                refused_since = time.monotonic()
            elif time.monotonic() - refused_since > JETSTREAM_PATIENCE:
                raise Unusable(f"NATS at {self._hosts} has no JetStream for this account")
            await asyncio.sleep(0.25)

    async def _has_jetstream(self) -> bool | None:
        """None: it does not answer."""
        try:
            answer = await self._client.request("$JS.API.INFO", b"", timeout=REQUEST_SECONDS)
        except nats.errors.NoRespondersError:
            # Of a node that has JetStream it only means that its cluster is not complete yet.
            if not self._client._server_info.get("jetstream"):
                return False
            self._report("JetStream does not answer yet: no responders")
            return None
        except _FAILURES as error:
            self._report(f"JetStream does not answer: {type(error).__name__}")
            return None
        error_code = msgspec.json.decode(answer.data).get("error", {}).get("err_code")
        return error_code not in _JETSTREAM_DISABLED

    async def _request(
        self, subject: str, body: bytes, timeout: float, headers: dict[str, Any] | None = None
    ) -> Msg:
        try:
            async with asyncio.timeout(timeout):
                # What is sent while disconnected is sent later, after its sender has given it up.
                await self._up.wait()
                return await self._client.request(subject, body, timeout=timeout, headers=headers)
        except _FAILURES as error:
            raise BrokerFailed(f"NATS did not answer: {type(error).__name__}") from error

    async def _errored(self, error: Exception) -> None:
        self._report(f"NATS at {self._hosts}: {type(error).__name__}: {error}")

    def _report(self, text: str) -> None:
        self._problem = text
        now = time.monotonic()
        self._logged = {known: at for known, at in self._logged.items() if now - at < LOG_EVERY}
        if self._logged.setdefault(text, now) == now:
            logger.warning("%s", text)

    async def _disconnected(self) -> None:
        self._up.clear()
        self._tell(False)
        if not self._closing:
            self._report(f"the connection to NATS at {self._hosts} is lost")

    async def _reconnected(self) -> None:
        if not self._decided.is_set() or self._unusable is not None:
            return
        self._up.set()
        logger.info("connected to NATS again")
        if self._on_reconnect is not None:
            self._on_reconnect()
        self._tell(True)

    def _tell(self, up: bool) -> None:
        for watcher in tuple(self._watchers):
            watcher(up)

    async def _closed(self) -> None:
        if self._closing:
            return
        self._problem = f"the connection to NATS was closed: {self._client.last_error}"
        logger.error("%s", self._problem)
        if self._on_closed is not None:
            self._on_closed()
        else:
            await self.crash(ConnectionError(self._problem))


def wire_size(body: bytes, headers: Mapping[str, str]) -> int:
    """Bytes that the server counts against its payload limit: body and encoded headers."""
    if not headers:
        return len(body)
    lines = sum(len(key.encode()) + len(value.encode()) + _HEADER_LINE for key, value in headers.items())
    return len(body) + _HEADER_FRAME + lines


def _next_server(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """The server that failed least, and the seconds to wait for it: soon at first, then every 2 s."""
    server = min(servers, key=lambda candidate: candidate.reconnects)
    return server, min(0.05 * 2.0 ** min(server.reconnects, 10), MAX_RECONNECT_WAIT)
