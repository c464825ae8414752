"""Operators, accounts and users of NATS with signed tokens, as `nsc` makes them."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]

_COUNTS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
_STORAGE = ("mem_storage", "disk_storage", "streams", "consumer")


def seed(prefix: int, number: int) -> bytes:
    """The seed of the key pair of this kind and number."""
    return bytes(nkeys.encode_seed(bytes([number] * 32), prefix))


def pair(prefix: int, number: int) -> Any:
    """A key pair of this kind, always the same for a number."""
    return nkeys.from_seed(bytearray(seed(prefix, number)))


def signed(
    issuer: Any, subject: Any, name: str, nats: Mapping[str, Any], expires: float | None = None
) -> str:
    """A token of NATS; `expires` is in seconds from now."""
    claims: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": issuer.public_key.decode(),
        "name": name,
        "sub": subject.public_key.decode(),
        "nats": {"version": 2, **nats},
    }
    if expires is not None:
        claims["exp"] = int(time.time() + expires)
    claims["jti"] = hashlib.sha256(json.dumps(claims).encode()).hexdigest()
    text = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(claims)}"
    return f"{text}.{_url64(issuer.sign(text.encode()))}"


def _part(value: object) -> str:
    return _url64(json.dumps(value).encode())


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class Realm:
    """One operator with a system account and an account `A` with JetStream, and users of `A`."""

    def __init__(self) -> None:
        self._operator = pair(nkeys.PREFIX_BYTE_OPERATOR, 3)
        self._account, self._system = pair(nkeys.PREFIX_BYTE_ACCOUNT, 4), pair(nkeys.PREFIX_BYTE_ACCOUNT, 5)

    def settings(self, *, without_account: bool = False, revoked: bool = False) -> str:
        """Lines of the server's configuration; `revoked`: all users made so far."""
        accounts: dict[Any, tuple[str, Mapping[str, int]]] = {self._system: ("SYS", {})}
        if not without_account:
            accounts[self._account] = ("A", dict.fromkeys(_STORAGE, -1))
        preloaded = [
            f"  {key.public_key.decode()}: {self._account_token(key, name, storage, revoked and name == 'A')}"
            for key, (name, storage) in accounts.items()
        ]
        return "\n".join(
            [
                f"operator: {signed(self._operator, self._operator, 'O', {'type': 'operator'})}",
                f"system_account: {self._system.public_key.decode()}",
                "resolver: MEMORY",
                "resolver_preload: {",
                *preloaded,
                "}",
            ]
        )

    def _account_token(self, key: Any, name: str, storage: Mapping[str, int], revoked: bool) -> str:
        limits = {**dict.fromkeys(_COUNTS, -1), **storage, "wildcards": True}
        revocations = {"revocations": {"*": int(time.time())}} if revoked else {}
        return signed(self._operator, key, name, {"type": "account", "limits": limits, **revocations})

    def write_user(self, path: Path, *, number: int = 6, expires: float | None = None) -> None:
        """A credentials file of a user of `A`."""
        limits = {"subs": -1, "data": -1, "payload": -1}
        user = pair(nkeys.PREFIX_BYTE_USER, number)
        token = signed(
            self._account, user, f"user {number}", {"type": "user", **limits, "pub": {}, "sub": {}}, expires
        )
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{seed(nkeys.PREFIX_BYTE_USER, number).decode()}\n"
            "------END USER NKEY SEED------\n"
        )
