"""Specifications of the streams and consumers that the worker needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from events.subjects import ALL_COMPANIES, ConsumerType, Tenant
from streams.config.settings import Settings

_DAY: Final = 86_400
NANOSECONDS: Final = 1_000_000_000


# Real-time events in the batches of all tenants of a worker; each tenant may have two batches of some 3 KB an event.
MAX_EVENTS_OF_WORKER: Final = 10_000
MIN_BATCH_SIZE: Final = 50
# What the pull requests of all tenants of a worker may return together. NATS disconnects a client that has 64 MB to
# read (`max_pending`); all of that is delivered again after the ack wait, which costs each event a delivery.
MAX_BYTES_OF_WORKER: Final[Mapping[ConsumerType, int]] = {
    "realtime": 32 * 1024 * 1024,
    "historical": 12 * 1024 * 1024,
    "dlq": 4 * 1024 * 1024,
}


# What of it waits in the lanes of a fleet for the agents.
_LANE_EVENTS: Final[Mapping[ConsumerType, int]] = {
    "realtime": MAX_EVENTS_OF_WORKER,
    "historical": 50,
    "dlq": 1000,
}
_FLEET_NAMES: Final[Mapping[ConsumerType, str]] = {
    "realtime": "realtime",
    "historical": "history",
    "dlq": "dlq",
}


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream as we create it: file storage, limits retention."""

    name: str
    subjects: tuple[str, ...]
    max_age: int  # seconds; 0: for ever
    replicas: int = 1
    max_consumers: int = -1  # -1: the server's own limit

    def config(self) -> dict[str, object]:
        """Its configuration for the server."""
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": self.replicas,
            "max_age": self.max_age * NANOSECONDS,
            "max_consumers": self.max_consumers,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_msg_size": -1,
        }


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A pull consumer, and the older durables whose position it takes over.

    `tenant` is None if it delivers the events of all companies, as `fleet_durable` does; the durables of single
    companies are named `company_durable` and the company.
    """

    consumer_type: ConsumerType
    tenant: Tenant | None
    stream: str
    durable: str
    predecessor: str
    fleet_durable: str
    company_durable: str
    subjects: tuple[str, ...]
    ack_wait: float  # seconds
    max_ack_pending: int
    batch_size: int  # most messages of one pull request
    batch_bytes: int  # of one pull request for more than one message

    @property
    def name(self) -> str:
        """Consumer type and company, as `/ready` names them."""
        return f"{self.consumer_type} {self.company}"

    @property
    def company(self) -> str:
        """The company, or `*` for all."""
        return ALL_COMPANIES if self.tenant is None else self.tenant.company

    def config(self) -> dict[str, object]:
        """Its configuration for the server, from the start of the stream."""
        return {
            "name": self.durable,
            "durable_name": self.durable,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "replay_policy": "instant",
            "max_deliver": -1,
            **self.updatable(),
        }

    def updatable(self) -> dict[str, object]:
        """The part of it that can be changed while the consumer exists."""
        return {
            "filter_subjects": list(self.subjects),
            "ack_wait": round(self.ack_wait * NANOSECONDS),
            "max_ack_pending": self.max_ack_pending,
        }


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How much may wait in lanes for the agents, and how much of it is one batch; sizes in bytes.

    A single message that is larger than a limit is taken all the same.
    """

    events: int
    size: int
    lane_events: int
    lane_size: int
    batch_events: int
    batch_size: int


def streams(settings: Settings, nodes: int = 1) -> tuple[StreamSpec, ...]:
    """The three streams, shared by all tenants, for a cluster of so many NATS nodes."""

    def spec(name: str, bases: Iterable[str], rest: str, max_age_days: int) -> StreamSpec:
        subjects = tuple(f"{base}.{rest}" for base in bases)
        copies = replicas(settings.stream_replicas, nodes)
        return StreamSpec(name, subjects, max_age_days * _DAY, copies, settings.stream_max_consumers)

    return (
        spec(settings.realtime_stream, settings.realtime_subjects, "*", settings.realtime_max_age_days),
        spec(settings.historical_stream, settings.historical_subjects, "*", settings.historical_max_age_days),
        spec(settings.dlq_stream, (settings.dlq_subject,), ">", settings.dlq_max_age_days),
    )


def replicas(wanted: int, nodes: int) -> int:
    """Replicas of a stream: as many as wanted (0: three if there are three nodes, else one).

    A cluster with fewer nodes refuses the stream; it never gets fewer replicas instead.
    """
    return wanted or (3 if nodes >= 3 else 1)


def batch_share(batch_size: int, tenants: int) -> int:
    """The batch size of one of so many tenants: a backlog of all of them must fit into memory."""
    return min(batch_size, max(MIN_BATCH_SIZE, MAX_EVENTS_OF_WORKER // tenants))


def byte_share(consumer_type: ConsumerType, tenants: int) -> int:
    """The bytes of a batch of one of so many tenants; a single message may have more."""
    return MAX_BYTES_OF_WORKER[consumer_type] // tenants


def worker_consumers(settings: Settings) -> tuple[ConsumerSpec, ...]:
    """All consumers of a worker: three for each company, or three for a fleet."""
    owners: Sequence[Tenant | None] = settings.tenants or (None,)
    return tuple(spec for owner in owners for spec in consumers(settings, owner))


def consumers(settings: Settings, tenant: Tenant | None) -> tuple[ConsumerSpec, ...]:
    """The three consumers of a company, or those of a fleet."""
    spec = partial(_consumer, settings, tenant)
    shared_dlq = f"{settings.dlq_subject.replace('.', '_')}_worker_consumer"
    return (
        spec(
            "realtime",
            settings.realtime_stream,
            (settings.realtime_durable, settings.realtime_consumer + _company(tenant)),
            settings.realtime_subjects,
            settings.realtime_ack_wait,
            settings.realtime_batch_size,
        ),
        spec(
            "historical",
            settings.historical_stream,
            (settings.historical_durable, settings.historical_consumer + _company(tenant)),
            settings.historical_subjects,
            settings.historical_ack_wait,
            settings.historical_batch_size,
        ),
        spec(
            "dlq",
            settings.dlq_stream,
            (f"{shared_dlq}_", shared_dlq),
            (settings.dlq_subject,),
            settings.dlq_ack_wait,
            settings.dlq_batch_size,
            settings.dlq_max_ack_pending,
        ),
    )


def _company(tenant: Tenant | None) -> str:
    return ALL_COMPANIES if tenant is None else tenant.company


def _consumer(
    settings: Settings,
    tenant: Tenant | None,
    consumer_type: ConsumerType,
    stream: str,
    durables: tuple[str, str],
    bases: Iterable[str],
    ack_wait: float,
    batch_size: int,
    max_ack_pending: int = -1,
) -> ConsumerSpec:
    prefix, predecessor = durables
    fleet = settings.fleet_durable + _FLEET_NAMES[consumer_type]
    tenants = max(1, len(settings.tenants))
    return ConsumerSpec(
        consumer_type,
        tenant,
        stream,
        fleet if tenant is None else prefix + tenant.company,
        predecessor,
        fleet,
        prefix,
        tuple(f"{base}.{_company(tenant)}" for base in bases),
        ack_wait,
        max_ack_pending,
        batch_share(batch_size, tenants),
        byte_share(consumer_type, tenants),
    )


def lane_limits(spec: ConsumerSpec) -> LaneLimits:
    """How much a fleet's worker keeps in hand of what this consumer delivers."""
    events = _LANE_EVENTS[spec.consumer_type]
    size = MAX_BYTES_OF_WORKER[spec.consumer_type]
    batch = spec.batch_size
    return LaneLimits(
        events=max(events, batch),
        size=2 * size,
        lane_events=max(events // 5, batch),
        lane_size=size // 2,
        batch_events=batch,
        batch_size=size // 4,
    )


def covers(pattern: str, subject: str) -> bool:
    """Whether `pattern` matches every subject that `subject` matches."""
    have, want = pattern.split("."), subject.split(".")
    for at, token in enumerate(have):
        if token == ">":
            return len(want) > at
        if at >= len(want) or want[at] == ">" or token not in ("*", want[at]):
            return False
    return len(have) == len(want)
