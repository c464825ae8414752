"""Settings that are right one by one and wrong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from streams.config.credentials import tls_context

# The first must not exceed the second.
_AT_MOST: Final = (
    ("NATS_REALTIME_NAKBASEDELAY", "NATS_REALTIME_NAKMAXDELAY"),
    ("NATS_HISTORICAL_NAKBASEDELAY", "NATS_HISTORICAL_NAKMAXDELAY"),
    ("NATS_DLQBASEDELAYMINUTES", "NATS_DLQMAXDELAYMINUTES"),
)
_DIFFERENT: Final = (
    ("NATS_REALTIME_STREAM", "NATS_HISTORICAL_STREAM"),
    ("NATS_REALTIME_STREAM", "NATS_DLQSTREAM"),
    ("NATS_HISTORICAL_STREAM", "NATS_DLQSTREAM"),
    # A push consumer cannot become a pull consumer: the old name must stay the old durable's.
    ("NATS_REALTIME_DURABLE", "NATS_REALTIME_CONSUMER"),
    ("NATS_HISTORICAL_DURABLE", "NATS_HISTORICAL_CONSUMER"),
)
_MULTIPROCESS: Final = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


def conflicts(values: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """One sentence for each conflict; `values` holds, by variable, those that could be read."""
    for first, second in _AT_MOST:
        if first in values and second in values and values[first] > values[second]:
            yield f"{first} is more than {second}: expected at most that"
    for first, second in _DIFFERENT:
        if first in values and values[first] == values.get(second):
            yield f"{first} and {second} are the same: expected two different names"
    yield from _credentials(values)
    if any(environ.get(name) for name in _MULTIPROCESS):
        yield "PROMETHEUS_MULTIPROC_DIR must not be set: one process is one registry"


def _credentials(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("NATS_CREDS") and values.get("NATS_NKEY_SEED"):
        yield "NATS_CREDS and NATS_NKEY_SEED are both set: expected one of them"
    if "NATS_TLS_CERT" not in values or "NATS_TLS_KEY" not in values:
        return
    cert, key = values["NATS_TLS_CERT"], values["NATS_TLS_KEY"]
    if bool(cert) != bool(key):
        missing, given = ("KEY", "CERT") if cert else ("CERT", "KEY")
        yield f"NATS_TLS_{missing} is not set: expected a file for it beside NATS_TLS_{given}"
    elif cert:
        try:
            tls_context(None, cert, key)
        except OSError:
            yield "NATS_TLS_CERT and NATS_TLS_KEY are no pair: expected a certificate and its key, without passphrase"
