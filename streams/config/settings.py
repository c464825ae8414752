"""Settings: one frozen object, read once from the environment, checked as a whole (contract 7, design 11).

Each field declares its variable, what it means and its default, as an operator would write it; reading, the
error messages and the table in the operator's guide all come from these declarations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

from events.subjects import HISTORICAL, REALTIME, Tenant
from streams.config import credentials
from streams.config.variables import (
    COUNT,
    DAYS,
    PORT,
    Variable,
    addresses,
    base_subject,
    boolean,
    companies,
    dsn,
    duration,
    level,
    minutes,
    nats_name,
    number,
    optional,
    replicas,
    servers,
    subjects,
)


class SettingsError(Exception):
    """One or more settings are wrong: the text names every one of them, and what it should be."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("wrong settings: " + "; ".join(problems))
        self.problems = tuple(problems)


def _variable(
    name: str,
    meaning: str,
    parse: Callable[[str], Any],
    default: str | None,
    *aliases: str,
    secret: bool = False,
) -> Any:
    return field(metadata={"variable": Variable(name, meaning, default, parse, aliases)}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything an operator can set. Durations are seconds, ages days; `tenants` is never empty."""

    postgres_dsn: str = _variable(
        "POSTGRES_DSN",
        "connection URL of PostgreSQL, or text such as `host=... user=...`",
        dsn,
        None,
        "DATABASE_POSTGRESDSN",
        secret=True,
    )
    postgres_auto_migrate: bool = _variable(
        "DATABASE_POSTGRESAUTOMIGRATE", "create and extend tables at start", boolean, "true"
    )
    postgres_pool_size: int = _variable(
        "POSTGRES_POOL_SIZE", "most connections of a worker", number(1, 1000), "10"
    )
    nats_servers: tuple[str, ...] = _variable(
        "NATS_URL", "NATS servers, comma separated", servers, "nats://admin:admin@nats", secret=True
    )
    nats_creds: str | None = _variable(
        "NATS_CREDS",
        "credentials file of a NATS user: JWT and nkey seed",
        optional(credentials.creds_file),
        "",
    )
    nats_nkey_seed: str | None = _variable(
        "NATS_NKEY_SEED", "file with a NATS user's nkey seed", optional(credentials.seed_file), ""
    )
    nats_tls_ca: str | None = _variable(
        "NATS_TLS_CA", "PEM file of the authorities that vouch for NATS", optional(credentials.ca_file), ""
    )
    nats_tls_cert: str | None = _variable(
        "NATS_TLS_CERT", "PEM file of our certificate for NATS", optional(credentials.pem_file), ""
    )
    nats_tls_key: str | None = _variable(
        "NATS_TLS_KEY", "PEM file of that certificate's key", optional(credentials.pem_file), ""
    )
    nats_jetstream_domain: str | None = _variable(
        "NATS_JETSTREAM_DOMAIN", "JetStream domain, where it is not the server's own", optional(nats_name), ""
    )
    tenants: tuple[Tenant, ...] = _variable(
        "COMPANY_ID", "company, or companies separated by commas", companies, None
    )
    company_default: str = _variable("COMPANY_DEFAULT", "read, not used", str, "default_tenant")
    environment: str = _variable("ENVIRONMENT", "name of the deployment, only logged", str, "development")
    log_level: str = _variable(
        "LOG_LEVEL", "debug, info, warn or error; anything else is info", level, "info", "LOGLEVEL"
    )
    server_port: int = _variable("SERVER_PORT", "HTTP port of /health, /ready and /metrics", PORT, "8080")
    server_bind: tuple[str, ...] = _variable(
        "SERVER_BIND", "IP addresses to listen on, comma separated", addresses, "0.0.0.0,::"
    )
    metrics_enabled: bool = _variable("METRICS_ENABLED", "serve /metrics", boolean, "true")
    metrics_port: int = _variable("METRICS_PORT", "read, not used", PORT, "2112")
    metrics_jid_limit: int = _variable(
        "METRICS_JID_LIMIT",
        "distinct jids among the metric labels of a process, then `other`; 0: always `other`",
        number(0, 1_000_000),
        "1000",
    )
    realtime_max_age_days: int = _variable(
        "NATS_REALTIME_MAXAGE", "stream's max age in days; 0: none", DAYS, "30"
    )
    realtime_stream: str = _variable("NATS_REALTIME_STREAM", "stream", nats_name, "wa_events_stream")
    realtime_consumer: str = _variable(
        "NATS_REALTIME_CONSUMER", "prefix of the old durable to take over from", nats_name, "wa_listener_"
    )
    realtime_durable: str = _variable(
        "NATS_REALTIME_DURABLE", "prefix of our durable, COMPANY is appended", nats_name, "wa_realtime_"
    )
    realtime_group: str = _variable("NATS_REALTIME_GROUP", "read, not used", str, "wa_event_group_")
    realtime_subjects: tuple[str, ...] = _variable(
        "NATS_REALTIME_SUBJECTLIST", "base subjects", subjects(REALTIME), ",".join(REALTIME)
    )
    realtime_max_deliver: int = _variable("NATS_REALTIME_MAXDELIVER", "deliveries before the DLQ", COUNT, "5")
    realtime_nak_base_delay: float = _variable(
        "NATS_REALTIME_NAKBASEDELAY", "first retry delay", duration(), "1s"
    )
    realtime_nak_max_delay: float = _variable(
        "NATS_REALTIME_NAKMAXDELAY", "longest retry delay", duration(), "30s"
    )
    realtime_ack_wait: float = _variable("NATS_REALTIME_ACKWAIT", "consumer's ack wait", duration(1), "30s")
    realtime_batch_size: int = _variable(
        "NATS_REALTIME_BATCHSIZE", "most events of a batch", number(1, 5000), "500"
    )
    historical_max_age_days: int = _variable(
        "NATS_HISTORICAL_MAXAGE", "stream's max age in days; 0: none", DAYS, "30"
    )
    historical_stream: str = _variable(
        "NATS_HISTORICAL_STREAM", "stream", nats_name, "wa_history_events_stream"
    )
    historical_consumer: str = _variable(
        "NATS_HISTORICAL_CONSUMER",
        "prefix of the old durable to take over from",
        nats_name,
        "wa_history_listener_",
    )
    historical_durable: str = _variable(
        "NATS_HISTORICAL_DURABLE", "prefix of our durable, COMPANY is appended", nats_name, "wa_history_"
    )
    historical_group: str = _variable(
        "NATS_HISTORICAL_GROUP", "read, not used", str, "wa_history_event_group_"
    )
    historical_subjects: tuple[str, ...] = _variable(
        "NATS_HISTORICAL_SUBJECTLIST", "base subjects", subjects(HISTORICAL), ",".join(HISTORICAL)
    )
    historical_max_deliver: int = _variable(
        "NATS_HISTORICAL_MAXDELIVER", "deliveries before the DLQ", COUNT, "3"
    )
    historical_nak_base_delay: float = _variable(
        "NATS_HISTORICAL_NAKBASEDELAY", "first retry delay", duration(), "2s"
    )
    historical_nak_max_delay: float = _variable(
        "NATS_HISTORICAL_NAKMAXDELAY", "longest retry delay", duration(), "60s"
    )
    historical_ack_wait: float = _variable(
        "NATS_HISTORICAL_ACKWAIT", "consumer's ack wait", duration(1), "60s"
    )
    historical_batch_size: int = _variable(
        "NATS_HISTORICAL_BATCHSIZE", "most history batches stored at once", number(1, 100), "5"
    )
    dlq_stream: str = _variable("NATS_DLQSTREAM", "stream of dead letters", nats_name, "dlq_stream")
    dlq_subject: str = _variable(
        "NATS_DLQSUBJECT", "base subject, COMPANY is appended", base_subject, "v1.dlq"
    )
    dlq_workers: int = _variable("NATS_DLQWORKERS", "replays at a time", number(1, 10_000), "8")
    dlq_base_delay_minutes: float = _variable(
        "NATS_DLQBASEDELAYMINUTES", "first replay delay in minutes, decimals allowed", minutes, "5"
    )
    dlq_max_delay_minutes: float = _variable(
        "NATS_DLQMAXDELAYMINUTES", "longest replay delay in minutes, decimals allowed", minutes, "5"
    )
    dlq_max_age_days: int = _variable("NATS_DLQMAXAGEDAYS", "stream's max age in days; 0: none", DAYS, "7")
    dlq_max_deliver: int = _variable("NATS_DLQMAXDELIVER", "deliveries of an envelope", COUNT, "10")
    dlq_ack_wait: float = _variable("NATS_DLQACKWAIT", "consumer's ack wait", duration(1), "30s")
    dlq_batch_size: int = _variable(
        "NATS_DLQBATCHSIZE", "most envelopes fetched at once", number(1, 1000), "10"
    )
    dlq_max_ack_pending: int = _variable(
        "NATS_DLQMAXACKPENDING", "unacknowledged envelopes at a time, -1: no limit", number(1, also=-1), "-1"
    )
    stream_replicas: int = _variable(
        "NATS_STREAM_REPLICAS", "copies of a stream that is made: auto, 1, 3 or 5", replicas, "auto"
    )
    stream_max_consumers: int = _variable(
        "NATS_STREAM_MAXCONSUMERS",
        "most consumers of a stream that is made; -1: the server's own limit",
        number(1, 1_000_000, also=-1),
        "10000",
    )
    onboarding_pool_size: int = _variable(
        "WORKERPOOLS_ONBOARDING_POOLSIZE", "onboarding tasks at a time", number(1, 10_000), "10"
    )
    onboarding_queue_size: int = _variable(
        "WORKERPOOLS_ONBOARDING_QUEUESIZE", "onboarding tasks waiting", COUNT, "10000"
    )
    onboarding_max_block: float = _variable(
        "WORKERPOOLS_ONBOARDING_MAXBLOCK", "wait for room in the queue before a warning", duration(), "1s"
    )
    onboarding_expiry_time: float = _variable(
        "WORKERPOOLS_ONBOARDING_EXPIRYTIME", "read, not used", duration(), "1m"
    )
    postscan_delay: float = _variable("POSTSCAN_DELAY", "wait before the post-scan sync", duration(), "15m")
    stop_timeout: float = _variable("STOP_TIMEOUT", "time for a stop", duration(1), "28s")
    stall_timeout: float = _variable(
        "STALL_TIMEOUT",
        "without progress, though there is work, the worker ends; 0s: never",
        duration(),
        "5m",
    )

    @property
    def login(self) -> credentials.Login:
        """How to log in to NATS, besides what `NATS_URL` says."""
        names = ("nats_creds", "nats_nkey_seed", "nats_tls_ca", "nats_tls_cert", "nats_tls_key")
        return credentials.Login(**{name.removeprefix("nats_"): getattr(self, name) for name in names})

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read and check all variables. Raises `SettingsError`, which names every wrong one."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for attribute, variable in _declared():
            try:
                values[attribute] = variable.read(environ)
            except ValueError as error:
                problems.append(f"{variable.name} {error}")
        problems.extend(_conflicts(values))
        if any(environ.get(name) for name in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")):
            problems.append("PROMETHEUS_MULTIPROC_DIR must not be set: one process is one registry")
        if problems:
            raise SettingsError(problems)
        return cls(**values)


def _declared() -> Iterator[tuple[str, Variable]]:
    for item in fields(Settings):
        yield item.name, item.metadata["variable"]


def variables() -> tuple[Variable, ...]:
    """Every variable in the order of the operator's guide."""
    return tuple(variable for _, variable in _declared())


# (first field, second field, their variables' relation): the first must not exceed the second.
_AT_MOST: Final = (
    ("realtime_nak_base_delay", "realtime_nak_max_delay"),
    ("historical_nak_base_delay", "historical_nak_max_delay"),
    ("dlq_base_delay_minutes", "dlq_max_delay_minutes"),
)
_DIFFERENT: Final = (
    ("realtime_stream", "historical_stream"),
    ("realtime_stream", "dlq_stream"),
    ("historical_stream", "dlq_stream"),
    # A push consumer cannot become a pull consumer: the old name must stay the old durable's.
    ("realtime_durable", "realtime_consumer"),
    ("historical_durable", "historical_consumer"),
)


def _conflicts(values: Mapping[str, Any]) -> Iterator[str]:
    names = {attribute: variable.name for attribute, variable in _declared()}
    for first, second in _AT_MOST:
        if first in values and second in values and values[first] > values[second]:
            yield f"{names[first]} is more than {names[second]}: expected at most that"
    for first, second in _DIFFERENT:
        if first in values and values[first] == values.get(second):
            yield f"{names[first]} and {names[second]} are the same: expected two different names"
    yield from _login_conflicts(values)


def _login_conflicts(values: Mapping[str, Any]) -> Iterator[str]:
    if values.get("nats_creds") and values.get("nats_nkey_seed"):
        yield "NATS_CREDS and NATS_NKEY_SEED are both set: expected one of them"
    if "nats_tls_cert" not in values or "nats_tls_key" not in values:
        return
    cert, key = values["nats_tls_cert"], values["nats_tls_key"]
    if bool(cert) != bool(key):
        missing, given = ("KEY", "CERT") if cert else ("CERT", "KEY")
        yield f"NATS_TLS_{missing} is not set: expected a file for it beside NATS_TLS_{given}"
    elif cert:
        try:
            credentials.tls_context(None, cert, key)
        except OSError:
            yield "NATS_TLS_CERT and NATS_TLS_KEY are no pair: expected a certificate and its key, without passphrase"
