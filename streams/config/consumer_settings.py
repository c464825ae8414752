"""Settings of the streams, consumers and retries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from events.subjects import HISTORICAL, REALTIME, ConsumerType
from streams.config.names import BASE_SUBJECT, NATS_NAME, subjects
from streams.config.scalars import COUNT, DAYS, MINUTES, REPLICAS, TEXT, duration, number
from streams.config.variables import variable

# Form and meaning of what several consumers have.
_MAX_AGE: Final = (DAYS, "stream's max age in days; 0: none; only for a stream that is made")
_OLD_DURABLE: Final = (NATS_NAME, "prefix of the old durable to take over from, COMPANY is appended")
_DURABLE: Final = (NATS_NAME, "prefix of our durable, COMPANY is appended")
_MAX_DELIVER: Final = (COUNT, "deliveries before the DLQ, for failures that may pass")
_FIRST_DELAY: Final = (duration(), "first retry delay; it doubles with each try")
_LONGEST_DELAY: Final = (duration(), "longest retry delay")
_ACK_WAIT: Final = (duration(1), "consumer's ack wait")
_UNUSED: Final = (TEXT, "read, not used")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings:
    """What an operator can set of streams, consumers and retries. Durations are seconds, ages days."""

    realtime_max_age_days: int = variable("NATS_REALTIME_MAXAGE", "30", *_MAX_AGE)
    realtime_stream: str = variable(
        "NATS_REALTIME_STREAM", "wa_events_stream", NATS_NAME, "stream of real-time events"
    )
    realtime_consumer: str = variable("NATS_REALTIME_CONSUMER", "wa_listener_", *_OLD_DURABLE)
    realtime_durable: str = variable("NATS_REALTIME_DURABLE", "wa_realtime_", *_DURABLE)
    realtime_group: str = variable("NATS_REALTIME_GROUP", "wa_event_group_", *_UNUSED)
    realtime_subjects: tuple[str, ...] = variable(
        "NATS_REALTIME_SUBJECTLIST",
        ",".join(REALTIME),
        subjects(REALTIME),
        "base subjects that are taken; some or all of the known ones",
    )
    realtime_max_deliver: int = variable("NATS_REALTIME_MAXDELIVER", "5", *_MAX_DELIVER)
    realtime_nak_base_delay: float = variable("NATS_REALTIME_NAKBASEDELAY", "1s", *_FIRST_DELAY)
    realtime_nak_max_delay: float = variable("NATS_REALTIME_NAKMAXDELAY", "30s", *_LONGEST_DELAY)
    realtime_ack_wait: float = variable("NATS_REALTIME_ACKWAIT", "30s", *_ACK_WAIT)
    realtime_batch_size: int = variable(
        "NATS_REALTIME_BATCHSIZE",
        "500",
        number(1, 5000),
        "most events of a batch, which is one transaction. A worker for more than 20 companies "
        "gives each its part of 10,000",
    )
    historical_max_age_days: int = variable("NATS_HISTORICAL_MAXAGE", "30", *_MAX_AGE)
    historical_stream: str = variable(
        "NATS_HISTORICAL_STREAM", "wa_history_events_stream", NATS_NAME, "stream of history batches"
    )
    historical_consumer: str = variable("NATS_HISTORICAL_CONSUMER", "wa_history_listener_", *_OLD_DURABLE)
    historical_durable: str = variable("NATS_HISTORICAL_DURABLE", "wa_history_", *_DURABLE)
    historical_group: str = variable("NATS_HISTORICAL_GROUP", "wa_history_event_group_", *_UNUSED)
    historical_subjects: tuple[str, ...] = variable(
        "NATS_HISTORICAL_SUBJECTLIST",
        ",".join(HISTORICAL),
        subjects(HISTORICAL),
        "base subjects that are taken; some or all of the known ones",
    )
    historical_max_deliver: int = variable("NATS_HISTORICAL_MAXDELIVER", "3", *_MAX_DELIVER)
    historical_nak_base_delay: float = variable("NATS_HISTORICAL_NAKBASEDELAY", "2s", *_FIRST_DELAY)
    historical_nak_max_delay: float = variable("NATS_HISTORICAL_NAKMAXDELAY", "60s", *_LONGEST_DELAY)
    historical_ack_wait: float = variable("NATS_HISTORICAL_ACKWAIT", "60s", *_ACK_WAIT)
    historical_batch_size: int = variable(
        "NATS_HISTORICAL_BATCHSIZE",
        "5",
        number(1, 100),
        "most history batches stored at once, each of some hundred items",
    )
    dlq_stream: str = variable("NATS_DLQSTREAM", "dlq_stream", NATS_NAME, "stream of dead letters")
    dlq_subject: str = variable(
        "NATS_DLQSUBJECT",
        "v1.dlq",
        BASE_SUBJECT,
        "base subject, COMPANY is appended; dots become `_` in the durable's name",
    )
    dlq_workers: int = variable("NATS_DLQWORKERS", "8", number(1, 10_000), "replays at a time in a worker")
    dlq_base_delay_minutes: float = variable(
        "NATS_DLQBASEDELAYMINUTES",
        "5",
        MINUTES,
        "first replay delay in minutes, decimals allowed; it doubles with each try, ±20 %",
    )
    dlq_max_delay_minutes: float = variable(
        "NATS_DLQMAXDELAYMINUTES", "5", MINUTES, "longest replay delay in minutes, decimals allowed"
    )
    dlq_max_age_days: int = variable("NATS_DLQMAXAGEDAYS", "7", *_MAX_AGE)
    dlq_max_deliver: int = variable("NATS_DLQMAXDELIVER", "10", COUNT, "deliveries of an envelope")
    dlq_ack_wait: float = variable("NATS_DLQACKWAIT", "30s", *_ACK_WAIT)
    dlq_batch_size: int = variable(
        "NATS_DLQBATCHSIZE", "10", number(1, 1000), "most envelopes fetched at once"
    )
    dlq_max_ack_pending: int = variable(
        "NATS_DLQMAXACKPENDING", "-1", number(1, also=-1), "unacknowledged envelopes at a time; -1: no limit"
    )
    stream_replicas: int = variable(
        "NATS_STREAM_REPLICAS",
        "auto",
        REPLICAS,
        "copies of a stream that is made; auto: 3 in a cluster of three nodes or more, else 1",
    )
    stream_max_consumers: int = variable(
        "NATS_STREAM_MAXCONSUMERS",
        "10000",
        number(1, 1_000_000, also=-1),
        "most consumers of a stream that is made; -1: the server's own limit, from nats-server "
        "2.15 on 1000. Each company has one on each stream",
    )
    fleet_durable: str = variable(
        "NATS_FLEET_DURABLE", "wa_fleet_", NATS_NAME, "prefix of the durables of `COMPANY_ID=*`"
    )

    @property
    def retries(self) -> Mapping[ConsumerType, tuple[int, float, float]]:
        """Most deliveries, and the first and the longest delay in seconds, of each kind of event."""
        return {
            "realtime": (
                self.realtime_max_deliver,
                self.realtime_nak_base_delay,
                self.realtime_nak_max_delay,
            ),
            "historical": (
                self.historical_max_deliver,
                self.historical_nak_base_delay,
                self.historical_nak_max_delay,
            ),
            "dlq": (
                self.dlq_max_deliver,
                self.dlq_base_delay_minutes * 60,
                self.dlq_max_delay_minutes * 60,
            ),
        }
