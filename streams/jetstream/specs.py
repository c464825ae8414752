"""Specifications of the streams and consumers that the worker needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

from events.subjects import HISTORICAL, REALTIME, ConsumerType, Tenant
from streams.config.settings import Settings

_DAY: Final = 86_400
NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyConfig:
    """Names and numbers of streams and consumers; ack waits in seconds, -1 is no limit."""

    realtime_stream: str = "wa_events_stream"
    historical_stream: str = "wa_history_events_stream"
    dlq_stream: str = "dlq_stream"
    realtime_subjects: tuple[str, ...] = REALTIME
    historical_subjects: tuple[str, ...] = HISTORICAL
    dlq_subject: str = "v1.dlq"
    realtime_max_age_days: int = 30
    historical_max_age_days: int = 30
    dlq_max_age_days: int = 7
    realtime_durable: str = "wa_realtime_"
    historical_durable: str = "wa_history_"
    realtime_consumer: str = "wa_listener_"
    historical_consumer: str = "wa_history_listener_"
    realtime_ack_wait: float = 30
    historical_ack_wait: float = 60
    dlq_ack_wait: float = 30
    max_ack_pending: int = -1
    dlq_max_ack_pending: int = -1
    realtime_batch_size: int = 500
    historical_batch_size: int = 5
    dlq_batch_size: int = 10
    stream_replicas: int = 0  # 0: by the size of the cluster
    stream_max_consumers: int = 10_000


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
    """A pull consumer, and the older durable whose position it takes over."""

    consumer_type: ConsumerType
    tenant: Tenant
    stream: str
    durable: str
    predecessor: str
    subjects: tuple[str, ...]
    ack_wait: float  # seconds
    max_ack_pending: int
    batch_size: int  # messages of one pull request

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


def topology_config(settings: Settings) -> TopologyConfig:
    """The part of the settings that names streams and consumers."""
    names = [field.name for field in fields(TopologyConfig) if hasattr(settings, field.name)]
    return TopologyConfig(**{name: getattr(settings, name) for name in names})


def streams(config: TopologyConfig, nodes: int = 1) -> tuple[StreamSpec, ...]:
    """The three streams, shared by all tenants, for a cluster of so many NATS nodes."""
    limits = (replicas(config.stream_replicas, nodes), config.stream_max_consumers)
    return (
        StreamSpec(
            config.realtime_stream,
            tuple(f"{base}.*" for base in config.realtime_subjects),
            config.realtime_max_age_days * _DAY,
            *limits,
        ),
        StreamSpec(
            config.historical_stream,
            tuple(f"{base}.*" for base in config.historical_subjects),
            config.historical_max_age_days * _DAY,
            *limits,
        ),
        StreamSpec(config.dlq_stream, (f"{config.dlq_subject}.>",), config.dlq_max_age_days * _DAY, *limits),
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


def consumers(config: TopologyConfig, tenant: Tenant) -> tuple[ConsumerSpec, ...]:
    """The tenant's three consumers."""
    shared_dlq = f"{config.dlq_subject.replace('.', '_')}_worker_consumer"
    return (
        ConsumerSpec(
            "realtime",
            tenant,
            config.realtime_stream,
            config.realtime_durable + tenant.company,
            config.realtime_consumer + tenant.company,
            tuple(tenant.subject(base) for base in config.realtime_subjects),
            config.realtime_ack_wait,
            config.max_ack_pending,
            config.realtime_batch_size,
        ),
        ConsumerSpec(
            "historical",
            tenant,
            config.historical_stream,
            config.historical_durable + tenant.company,
            config.historical_consumer + tenant.company,
            tuple(tenant.subject(base) for base in config.historical_subjects),
            config.historical_ack_wait,
            config.max_ack_pending,
            config.historical_batch_size,
        ),
        ConsumerSpec(
            "dlq",
            tenant,
            config.dlq_stream,
            f"{shared_dlq}_{tenant.company}",
            shared_dlq,
            (tenant.subject(config.dlq_subject),),
            config.dlq_ack_wait,
            config.dlq_max_ack_pending,
            config.dlq_batch_size,
        ),
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
