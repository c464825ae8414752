"""What one source tells, on the metrics of its company."""

from __future__ import annotations

from streams.monitoring.metrics import Metrics


class SourceMeter:
    """What one source tells, on the metrics of its company."""

    def __init__(self, metrics: Metrics, company: str) -> None:
        self._metrics = metrics
        self._company = company

    def fetched(self, role: str) -> None:
        """A pull request was sent."""
        if role == "dlq":
            self._metrics.dlq_fetched()

    def fetch_failed(self, role: str) -> None:
        """A pull request failed."""
        self._metrics.source_failed(self._company, role)
        if role == "dlq":
            self._metrics.dlq_fetch_failed()

    def batch(self, role: str, company: str, size: int) -> None:
        """A batch was handed over."""
        self._metrics.fetched(company, role, size)

    def store_time_stepped_back(self, role: str, seconds: float) -> None:
        """An event has an earlier store time than one of a lower sequence."""
        self._metrics.store_time_stepped_back(self._company, role, seconds)
