"""The meter of a company's sources, on the metrics of the worker."""

from __future__ import annotations

from streams.monitoring.metrics import Metrics


class SourceMeter:
    """Counts what the sources of one company do; implements `streams.jetstream.meter.Meter`."""

    def __init__(self, metrics: Metrics, company: str) -> None:
        self._metrics = metrics
        self._company = company

    def pull_requested(self, consumer_type: str) -> None:
        """A pull request was sent."""
        if consumer_type == "dlq":
            self._metrics.dlq_pull_requested()

    def pull_failed(self, consumer_type: str) -> None:
        """A pull request failed, or the consumer is gone; an empty answer is no failure."""
        self._metrics.pull_failed(self._company, consumer_type)
        if consumer_type == "dlq":
            self._metrics.dlq_pull_failed()

    def batch_received(self, consumer_type: str, company: str, size: int) -> None:
        """A batch of deliveries was handed over to the channel."""
        self._metrics.batch_received(company, consumer_type, size)

    def store_time_stepped_back(self, consumer_type: str, seconds: float) -> None:
        """An event has an earlier store time than one of a lower sequence."""
        self._metrics.store_time_stepped_back(self._company, consumer_type, seconds)
