"""Settings: one frozen object, read once from the environment and checked as a whole.

Each field declares its variable: name, default, form and meaning. Reading, the error messages and the table in
docs/settings.md are made of these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from events.subjects import Tenant
from streams.config import credentials
from streams.config.conflicts import conflicts
from streams.config.consumer_settings import ConsumerSettings
from streams.config.names import (
    ADDRESSES,
    COMPANIES,
    COMPANY_PATTERNS,
    DSN,
    NATS_NAME,
    SERVERS,
)
from streams.config.scalars import (
    BOOLEAN,
    COUNT,
    LEVEL,
    PORT,
    PROVISION,
    TEXT,
    duration,
    number,
    optional,
)
from streams.config.variables import Variable, declared, variable


class SettingsError(Exception):
    """One or more settings are wrong: the text names every one of them, and what is expected."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("wrong settings: " + "; ".join(problems))
        self.problems = tuple(problems)


# What the existing service reads, and nobody needs.
_UNUSED: Final = (TEXT, "read, not used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ConsumerSettings):
    """Everything an operator can set. Durations are seconds, ages days; `tenants` is empty for a fleet."""

    postgres_dsn: str = variable(
        "POSTGRES_DSN",
        None,
        DSN,
        "connection URL of PostgreSQL, or text such as `host=... user=...`; "
        "[parameters](operations.md#connection-text)",
        alias="DATABASE_POSTGRESDSN",
        secret=True,
    )
    postgres_auto_migrate: bool = variable(
        "DATABASE_POSTGRESAUTOMIGRATE",
        "true",
        BOOLEAN,
        "create and extend tables at start; off: only `messages`, its partitions and our own "
        "tables, and the start fails if the others are missing",
    )
    postgres_pool_size: int = variable(
        "POSTGRES_POOL_SIZE",
        "10",
        number(1, 1000),
        "maximum of [connections](operations.md#connections) of a worker",
    )
    nats_servers: tuple[str, ...] = variable(
        "NATS_URL",
        "nats://admin:admin@nats",
        SERVERS,
        "NATS servers, comma separated; always set it in production: the default is the existing service's",
        secret=True,
    )
    nats_creds: str | None = variable(
        "NATS_CREDS",
        "",
        credentials.CREDS_FILE,
        "credentials file of a NATS user: JWT and nkey seed; read again at each reconnect",
    )
    nats_nkey_seed: str | None = variable(
        "NATS_NKEY_SEED",
        "",
        credentials.SEED_FILE,
        "file with a NATS user's nkey seed; instead of `NATS_CREDS`",
    )
    nats_tls_ca: str | None = variable(
        "NATS_TLS_CA",
        "",
        credentials.CA_FILE,
        "PEM file of the certificate authorities of NATS; without it the system's; see "
        "[security](security.md#nats)",
    )
    nats_tls_cert: str | None = variable(
        "NATS_TLS_CERT", "", credentials.PEM_FILE, "PEM file of our certificate for NATS; with `NATS_TLS_KEY`"
    )
    nats_tls_key: str | None = variable(
        "NATS_TLS_KEY", "", credentials.PEM_FILE, "PEM file of that certificate's key, without passphrase"
    )
    nats_jetstream_domain: str | None = variable(
        "NATS_JETSTREAM_DOMAIN",
        "",
        optional(NATS_NAME),
        "JetStream domain, where it is not the server's own: the hub's, for a worker at a leaf node",
    )
    tenants: tuple[Tenant, ...] = variable(
        "COMPANY_ID",
        None,
        COMPANIES,
        "company, or companies separated by commas; case is kept, 57 bytes at most, no blanks and "
        "none of `. * > / \\`. `*`: every company, see [fleets](fleets.md)",
    )
    company_allow: tuple[str, ...] = variable(
        "COMPANY_ALLOW",
        "*",
        COMPANY_PATTERNS,
        "with `COMPANY_ID=*`: the companies that are served, by name or pattern (`*`, `?`)",
    )
    company_exclude: tuple[str, ...] = variable(
        "COMPANY_EXCLUDE",
        "",
        COMPANY_PATTERNS,
        "with `COMPANY_ID=*`: those of them that are not served, as they have a worker of their own or are unwanted",
    )
    company_provision: bool = variable(
        "COMPANY_PROVISION",
        "auto",
        PROVISION,
        "with `COMPANY_ID=*`: auto: a new company gets its schema at its first event; existing: only by "
        "`companies-provision`",
    )
    company_max: int = variable(
        "COMPANY_MAX",
        "1000",
        number(1, 100_000),
        "with `COMPANY_ID=*`: as many companies get a schema at their first event; what is beyond waits in JetStream",
    )
    company_default: str = variable("COMPANY_DEFAULT", "default_tenant", *_UNUSED)
    environment: str = variable("ENVIRONMENT", "development", TEXT, "name of the deployment, only logged")
    log_level: str = variable(
        "LOG_LEVEL", "info", LEVEL, "debug, info, warn or error; anything else is info", alias="LOGLEVEL"
    )
    server_port: int = variable(
        "SERVER_PORT", "8080", PORT, "HTTP port of /health, /ready and /metrics; 0: any free one"
    )
    server_bind: tuple[str, ...] = variable(
        "SERVER_BIND",
        "0.0.0.0,::",
        ADDRESSES,
        "IP addresses to listen on, comma separated; by default all of IPv4 and IPv6, of which "
        "one may be missing on a machine; `127.0.0.1,::1` keeps the pages to this machine",
    )
    metrics_enabled: bool = variable(
        "METRICS_ENABLED", "true", BOOLEAN, "serve /metrics and the status page; off: both are 404"
    )
    metrics_port: int = variable("METRICS_PORT", "2112", PORT, "read, not used")
    metrics_jid_limit: int = variable(
        "METRICS_JID_LIMIT",
        "1000",
        number(0, 1_000_000),
        "distinct jids among the metric labels of a process, then `other`; 0: always `other`",
    )
    onboarding_pool_size: int = variable(
        "WORKERPOOLS_ONBOARDING_POOLSIZE",
        "10",
        number(1, 10_000),
        "onboarding tasks at a time, each the messages of one batch",
    )
    onboarding_queue_size: int = variable(
        "WORKERPOOLS_ONBOARDING_QUEUESIZE", "10000", COUNT, "onboarding tasks waiting"
    )
    onboarding_max_block: float = variable(
        "WORKERPOOLS_ONBOARDING_MAXBLOCK", "1s", duration(), "wait for room in the queue before a warning"
    )
    onboarding_expiry_time: float = variable(
        "WORKERPOOLS_ONBOARDING_EXPIRYTIME", "1m", duration(), "read, not used"
    )
    postscan_delay: float = variable(
        "POSTSCAN_DELAY",
        "15m",
        duration(),
        "wait before the post-scan sync of an agent's contacts, after its last history batch",
    )
    stop_timeout: float = variable(
        "STOP_TIMEOUT",
        "28s",
        duration(1),
        "time for a stop: whatever hangs, the worker ends by then. Orchestrators must wait longer",
    )
    stall_timeout: float = variable(
        "STALL_TIMEOUT",
        "5m",
        duration(),
        "the worker ends when it had work and made no progress for so long; 0s: never",
    )

    @property
    def login(self) -> credentials.Login:
        """Files to log in to NATS with, beside what `NATS_URL` says."""
        return credentials.Login(
            creds=self.nats_creds,
            nkey_seed=self.nats_nkey_seed,
            tls_ca=self.nats_tls_ca,
            tls_cert=self.nats_tls_cert,
            tls_key=self.nats_tls_key,
        )

    @property
    def fleet(self) -> bool:
        """Whether every company is served, through shared consumers."""
        return not self.tenants

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read and check all variables. Raises `SettingsError`, which names every wrong one."""
        values: dict[str, Any] = {}
        problems: list[str] = []
        for each in variables():
            try:
                values[each.name] = each.read(environ)
            except ValueError as error:
                problems.append(f"{each.name} {error}")
        problems.extend(conflicts(values, environ))
        if problems:
            raise SettingsError(problems)
        return cls(**{item.name: values[declared(item).name] for item in fields(cls)})


def variables() -> tuple[Variable, ...]:
    """Every variable, in the order of docs/settings.md."""
    inherited = {item.name for item in fields(ConsumerSettings)}
    return tuple(map(declared, sorted(fields(Settings), key=lambda item: item.name in inherited)))
