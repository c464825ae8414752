"""What a connection is opened with."""

from __future__ import annotations

import ssl
from typing import Any

import asyncpg
import pytest

from tables.connection.dsn import parse
from tables.connection.hosts import Connector
from tables.errors import Unavailable


async def _asked_with(monkeypatch: pytest.MonkeyPatch, dsn: str) -> dict[str, Any]:
    """The driver's options of the first attempt to connect."""
    asked: list[dict[str, Any]] = []

    async def connect(**options: Any) -> None:
        asked.append(options)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncpg, "connect", connect)
    with pytest.raises(Unavailable):
        await Connector(parse(dsn)).connect()
    return asked[0]


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
async def test_the_authorities_of_the_system_do_not_loosen_the_versions_of_tls_that_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    limits = f"ssl_min_protocol_version={version}&ssl_max_protocol_version={version}"
    dsn = f"postgres://db/wa?sslmode=verify-full&sslrootcert=system&{limits}"
    context = (await _asked_with(monkeypatch, dsn))["ssl"]
    expected = ssl.TLSVersion[version.replace(".", "_")]
    assert (context.minimum_version, context.maximum_version) == (expected, expected)
    assert context.check_hostname


async def test_a_list_of_revoked_certificates_is_read_beside_the_authorities_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda _, file: loaded.append(file))
    dsn = "postgres://db/wa?sslmode=verify-full&sslrootcert=system&sslcrl=/etc/revoked.pem"
    context = (await _asked_with(monkeypatch, dsn))["ssl"]
    assert loaded == ["/etc/revoked.pem"]
    assert context.verify_flags & ssl.VERIFY_CRL_CHECK_CHAIN
