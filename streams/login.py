"""How we prove who we are to NATS, and how NATS does to us: files of credentials, and TLS.

User and password, or a token, are in `NATS_URL` itself.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

_CREDS_PARTS: Final = ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Paths of files, None where there is none. Credentials are read anew at each reconnect, TLS files once."""

    creds: str | None = None
    nkey_seed: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def tls(self) -> bool:
        """Whether anything of TLS is set."""
        return bool(self.tls_ca or self.tls_cert)

    def options(self) -> dict[str, Any]:
        """Arguments of the client's `connect`. Raises `OSError` when a file of TLS cannot be used."""
        chosen: dict[str, Any] = {}
        if self.creds:
            chosen["user_credentials"] = self.creds
        if self.nkey_seed:
            chosen["nkeys_seed"] = self.nkey_seed
        if self.tls:
            chosen["tls"] = tls_context(self.tls_ca, self.tls_cert, self.tls_key)
        return chosen


ANONYMOUS: Final = Login()


class TlsClient(Client):
    """A client that speaks to no server without TLS: nats-py would send its password in the clear."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise nats.errors.Error("the server does not ask for TLS, which is set here")
        await super()._process_info(info, initial_connection)


def client(login: Login, urls: list[str]) -> Client:
    """A client, not connected; one that insists on TLS if TLS is set, or one of the servers is `tls://`."""
    return TlsClient() if login.tls or any(url.startswith("tls://") for url in urls) else Client()


def host(url: str) -> str:
    """Host and port of a server, without its credentials."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.hostname}:{parts.port or 4222}"


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """What checks the server (by `ca`, else by the system's authorities) and shows our certificate, if any.

    Raises `OSError` when a file cannot be used; a key with a passphrase is refused, not asked about.
    """
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key, password=lambda: "")
    return context


def creds_file(path: str) -> str:
    """The path, if it is a credentials file of a user. Raises `ValueError`."""
    text = _read(path)
    if not all(part in text for part in _CREDS_PARTS):
        raise ValueError("is not a NATS credentials file: expected a user's JWT and its nkey seed in it")
    return path


def seed_file(path: str) -> str:
    """The path, if it holds a user's nkey seed and nothing else. Raises `ValueError`."""
    import nkeys  # type: ignore[import-untyped]

    seed = bytearray(_read(path).strip().encode())
    try:
        nkeys.from_seed(seed).wipe()
    except Exception:
        # The text of these errors is not ours: it could show the seed.
        raise ValueError(
            "is not an nkey seed: expected a file that holds it (SU...) and nothing else"
        ) from None
    return path


def ca_file(path: str) -> str:
    """The path, if it holds certificates. Raises `ValueError`."""
    _read(path)
    try:
        ssl.create_default_context(cafile=path)
    except OSError:
        raise ValueError("holds no certificate: expected a PEM file of authorities") from None
    return path


def pem_file(path: str) -> str:
    """The path, if the file can be read. Raises `ValueError`."""
    _read(path)
    return path


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1_000_000)
    except OSError as error:
        raise ValueError(f"names a file that cannot be read: {error.strerror}") from None
