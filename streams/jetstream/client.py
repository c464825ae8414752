"""nats-py's client with renewed credentials and reconnects after refusals that may pass.

A server that ends a connection because credentials expired, were revoked or replaced may accept them again later, or
the new ones in the file; nats-py closes such a connection for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import nats.errors
from nats.aio.client import Client, Srv
from nats.protocol.parser import ERR_RE

from streams.config.credentials import Login
from streams.jetstream.permissions import ANY, SUBSCRIPTION, Denial, parse_denial

# Errors that would come again on the next connection.
_CLIENT_FAULT: Final = ("maximum payload", "parser error", "unknown protocol", "maximum control line")
# The server keeps the connection open.
_STAYS_OPEN: Final = ("invalid subject",)
_TOO_MANY_SUBSCRIPTIONS: Final = "maximum subscriptions exceeded"
_STALE: Final = "stale connection"
_REFUSED: Final = ("authorization violation", "authentication expired", "authentication revoked")


def refuses_credentials(text: str) -> bool:
    """Whether an error of the server means that it does not accept our credentials (any more)."""
    return any(part in text.lower() for part in _REFUSED)


class NatsClient(Client):
    """Reads credentials for each connection, and reconnects whenever waiting may help.

    With TLS set it connects to no server without: nats-py would send its password in the clear.
    """

    def __init__(
        self, login: Login, urls: list[str], on_denied: Callable[[Denial], None] = lambda _denial: None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._on_denied = on_denied
        self._login = login
        self._requires_tls = login.tls or any(url.startswith("tls://") for url in urls)

    @property
    def address(self) -> str:
        """Host and port of the server that it is, or was last, connected to; empty before the first."""
        return self._current_server.uri.netloc.rpartition("@")[2] if self._current_server else ""

    @property
    def server_info(self) -> Mapping[str, Any]:
        """What that server says of itself; its `server_id` is the same at each of its addresses."""
        info: Mapping[str, Any] = self._server_info
        return info

    @property
    def addresses(self) -> list[str]:
        """Host and port of every known server: configured, or advertised by the cluster."""
        return [server.uri.netloc.rpartition("@")[2] for server in self._server_pool]

    @property
    def reply_subject(self) -> str:
        """The subject of the subscription for replies to requests; empty before the first request."""
        return f"{self._resp_sub_prefix.decode()}*" if self._resp_sub_prefix else ""

    async def round_trip(self, timeout: float) -> bool:
        """Whether the server has read, within `timeout` seconds, all that was sent so far.

        Its errors about that have arrived by then. nats-py's own `flush` breaks its read loop when the answer comes
        after the time-out.
        """
        if not self.is_connected or self._transport is None:
            return False
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            # A ping would overtake what waits to be written.
            if self._pending:
                self._transport.writelines(self._pending[:])
                self._pending, self._pending_data_size = [], 0
            await self._send_ping(answered)
        except (OSError, RuntimeError, AttributeError):
            return False
        done, _ = await asyncio.wait({answered}, timeout=timeout)
        return bool(done)

    async def subscribe_again(self, subject: str) -> bool:
        """Request the subscriptions to `subject` again, which the server dropped; False if there are none."""
        subscriptions = [known for known in self._subs.values() if known._subject == subject]
        for subscription in subscriptions:
            await self._send_subscribe(subscription)
        return bool(subscriptions)

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport:
            # nats-py does not close the sockets of refused tries.
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if self._requires_tls and initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("the server does not ask for TLS, which is set here")
        await super()._process_info(info, initial_connection)

    def _setup_nkeys_connect(self) -> None:
        """Do nothing: nats-py would keep the public key of the first file, and read an empty one in an endless loop."""

    def _connect_command(self) -> bytes:
        if self._login.has_file:
            try:
                identity = self._login.identity()
            except ValueError as error:
                raise nats.errors.Error(str(error)) from None
            self._signature_cb = identity.sign
            self._public_nkey = identity.public_key
            self._user_jwt_cb = identity.token if identity.jwt else None
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        text = self._original_text(err_msg)
        if (denial := parse_denial(text)) is not None:
            self._on_denied(denial)
        elif _TOO_MANY_SUBSCRIPTIONS in err_msg:
            self._on_denied(Denial(SUBSCRIPTION, ANY, text))
        elif _STALE in err_msg or any(part in err_msg for part in _CLIENT_FAULT):
            await super()._process_err(err_msg)
        else:
            error = nats.errors.Error(text)
            await self._error_cb(error)
            if not any(part in err_msg for part in _STAYS_OPEN):
                await self._process_op_err(error)

    def _original_text(self, err_msg: str) -> str:
        """The server's text: the parser has changed it to lower case, but still has the line."""
        found = ERR_RE.match(self._ps.buf)
        raw = found[1].decode(errors="replace") if found and found[1] else err_msg
        return (raw if raw.lower() == err_msg else err_msg).strip("'")
