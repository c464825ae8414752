"""What the load generator counts, and its page of metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from events.subjects import EVENT_TYPES, Tenant
from testkit.publisher import PublishError

_LABELS: Final = ("subject", "company_id")


class LoadError(PublishError):
    """The load generator cannot start; the message is one line."""


@dataclass(slots=True)
class Counts:
    """Events of one subject: sent, confirmed by JetStream, not confirmed."""

    company: str
    event_type: str
    attempted: int = 0
    confirmed: int = 0
    errors: int = 0


class Tally(Collector):
    """The counts by full subject, all there from the start.

    A collector of its own: it costs an addition where it counts, and has no `_created` series.
    """

    def __init__(self, companies: Sequence[str]) -> None:
        self.counts = {
            Tenant(company).subject(event_type): Counts(company, event_type)
            for company in companies
            for event_type in EVENT_TYPES
        }

    def total(self) -> Counts:
        """The sums over everything."""
        return _sum("", self.counts.values())

    def by_event_type(self) -> list[Counts]:
        """The sums over the companies, of the event types that were sent."""
        every = [
            _sum(name, [one for one in self.counts.values() if one.event_type == name])
            for name in EVENT_TYPES
        ]
        return [one for one in every if one.attempted]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See `Collector`; called in the thread of the page."""
        attempted = CounterMetricFamily(
            "loadgen_messages_attempted", "Events that were sent to JetStream.", labels=_LABELS
        )
        published = CounterMetricFamily(
            "loadgen_messages_published", "Events that JetStream confirmed.", labels=_LABELS
        )
        errors = CounterMetricFamily(
            "loadgen_publish_errors", "Events that JetStream did not confirm.", labels=_LABELS
        )
        for one in self.counts.values():
            labels = (one.event_type, one.company)
            # Attempts last: the events go on meanwhile, and no page may have more answers than attempts.
            published.add_metric(labels, one.confirmed)
            errors.add_metric(labels, one.errors)
            attempted.add_metric(labels, one.attempted)
        yield from (attempted, published, errors)


def _sum(event_type: str, counts: Collection[Counts]) -> Counts:
    return Counts(
        "",
        event_type,
        sum(one.attempted for one in counts),
        sum(one.confirmed for one in counts),
        sum(one.errors for one in counts),
    )


@contextmanager
def page(tally: Tally, port: int) -> Iterator[int]:
    """Serve the counts on a port (0: any free one), which is handed out. Raises `LoadError`."""
    registry = CollectorRegistry()
    registry.register(tally)
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise LoadError(f"--metrics-port {port}: cannot be used: {error.strerror}") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
