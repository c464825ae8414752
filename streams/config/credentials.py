"""NATS authentication: credentials files, nkeys and TLS. User and password, or a token, are in `NATS_URL`."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from streams.config.scalars import Form, optional

_CREDS_PARTS: Final = ("BEGIN NATS USER JWT", "BEGIN USER NKEY SEED")
_JWT: Final = re.compile(r"BEGIN NATS USER JWT-+\s+([^\s-][^\s]*)")
_SEED: Final = re.compile(r"BEGIN USER NKEY SEED-+\s+(SU\w+)")


@dataclass(frozen=True, slots=True)
class Identity:
    """A user's JWT (empty for an nkey), public key and seed; JWT and seed are in no text of it."""

    jwt: str = field(repr=False)
    public_key: str
    seed: str = field(repr=False)

    def token(self) -> bytearray:
        """The JWT in the type that nats-py takes."""
        return bytearray(self.jwt.encode())

    def sign(self, nonce: str) -> bytes:
        """The signature of the server's nonce, in base64."""
        pair = _pair(self.seed)
        try:
            return base64.b64encode(pair.sign(nonce.encode()))
        finally:
            pair.wipe()


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Paths of files, None where none is set. Credentials are read at each connect, TLS files once."""

    creds: str | None = None
    nkey_seed: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def tls(self) -> bool:
        """Whether TLS is required."""
        return bool(self.tls_ca or self.tls_cert)

    @property
    def has_file(self) -> bool:
        """Whether the user is authenticated by a file."""
        return bool(self.creds or self.nkey_seed)

    def identity(self) -> Identity:
        """The identity in the credentials file. Raises `ValueError`, which names the variable and no content."""
        if self.creds:
            text = _read_of("NATS_CREDS", creds_file, self.creds)
            jwt, seed = _JWT.search(text), _SEED.search(text)
            if jwt is None or seed is None:
                raise ValueError(
                    "NATS_CREDS is not a NATS credentials file: expected a user's JWT and its nkey seed"
                )
            return Identity(jwt[1], _public_key("NATS_CREDS", seed[1]), seed[1])
        seed_text = _read_of("NATS_NKEY_SEED", seed_file, self.nkey_seed or "").strip()
        return Identity("", _public_key("NATS_NKEY_SEED", seed_text), seed_text)

    def advice(self) -> str:
        """What the operator has to renew when a server refuses the login."""
        if self.creds:
            return f"renew the file of NATS_CREDS{self._expiry()}; it is read again at each try"
        if self.nkey_seed:
            return "correct the file of NATS_NKEY_SEED, or the server's users; it is read again at each try"
        return "correct user and password (or the token) in NATS_URL, or the server's users"

    def _expiry(self) -> str:
        try:
            payload = self.identity().jwt.split(".")[1]
            expires = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))).get("exp", 0)
        except (ValueError, IndexError, AttributeError):
            return ""
        if not isinstance(expires, int) or expires <= 0:
            return ""
        return f" (its JWT is valid until {datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ})"

    def options(self) -> dict[str, Any]:
        """Arguments of the client's `connect`. Raises `OSError` if a TLS file cannot be used."""
        chosen: dict[str, Any] = {}
        if self.creds:
            chosen["user_credentials"] = self.creds
        if self.nkey_seed:
            chosen["nkeys_seed"] = self.nkey_seed
        if self.tls:
            chosen["tls"] = tls_context(self.tls_ca, self.tls_cert, self.tls_key)
        return chosen


ANONYMOUS: Final = Login()


def host(url: str) -> str:
    """Host and port of a server's URL, without credentials."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return f"{parts.hostname}:{parts.port or 4222}"


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """A context that verifies the server by `ca` (else by the system's authorities), with a client certificate if any.

    Raises `OSError` if a file cannot be used. A key with a passphrase is an error: nobody is there to type it.
    """
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key, password=lambda: "")
    return context


def creds_file(path: str) -> str:
    """The path of a user's credentials file. Raises `ValueError` if it is something else."""
    text = _read(path)
    if not all(part in text for part in _CREDS_PARTS):
        raise ValueError("is not a NATS credentials file: expected a user's JWT and its nkey seed in it")
    return path


def seed_file(path: str) -> str:
    """The path of a file with a user's nkey seed and nothing else. Raises `ValueError`."""
    _pair(_read(path).strip()).wipe()
    return path


def ca_file(path: str) -> str:
    """The path of a PEM file of certificates. Raises `ValueError`."""
    _read(path)
    try:
        ssl.create_default_context(cafile=path)
    except OSError:
        raise ValueError("holds no certificate: expected a PEM file of authorities") from None
    return path


def pem_file(path: str) -> str:
    """The path of a file that can be read. Raises `ValueError`."""
    _read(path)
    return path


CREDS_FILE: Final = optional(Form("file", creds_file))
SEED_FILE: Final = optional(Form("file", seed_file))
CA_FILE: Final = optional(Form("file", ca_file))
PEM_FILE: Final = optional(Form("file", pem_file))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1_000_000)
    except OSError as error:
        raise ValueError(f"names a file that cannot be read: {error.strerror}") from None


def _read_of(variable: str, check: Callable[[str], str], path: str) -> str:
    try:
        return _read(check(path))
    except ValueError as error:
        raise ValueError(f"{variable} {error}") from None


def _public_key(variable: str, seed: str) -> str:
    try:
        pair = _pair(seed)
    except ValueError as error:
        raise ValueError(f"{variable} {error}") from None
    try:
        return str(pair.public_key.decode())
    finally:
        pair.wipe()


def _pair(seed: str) -> Any:
    import nkeys  # type: ignore[import-untyped]

    try:
        return nkeys.from_seed(bytearray(seed.encode()))
    except Exception:
        # The text of these errors is not ours: it could show the seed.
        raise ValueError(
            "is not an nkey seed: expected a file that holds it (SU...) and nothing else"
        ) from None
