"""The dashboards' values for one company, beside the values on the worker's /metrics page."""

from __future__ import annotations

import math

from testkit.worker import Scrape
from tests.monitoring.dashboards import dashboards, substituted
from tests.monitoring.environment import A, Environment, Facts
from tests.monitoring.guide import Example
from tests.monitoring.increases import Bounds, increases
from tests.monitoring.prometheus import Sample
from tests.series import series


class Reader:
    """One company's panels at the moment of its worker's last scrape; values that are NaN are left out."""

    def __init__(self, env: Environment, company: str) -> None:
        self._env = env
        self.company = company
        self.job = "tenant_app_A" if company == A else "tenant_app_B"
        self.facts: Facts = env.facts[company]
        self.page: Scrape = env.pages[self.job]

    def lines(self, dashboard: str, title: str, place: int = 0) -> list[Sample]:
        """The lines of one of a panel's expressions."""
        return self._ask(dashboards()[dashboard].panel(title).expressions[place])

    def value(self, dashboard: str, title: str, place: int = 0) -> float:
        """The one value of a panel's expression."""
        (sample,) = self.lines(dashboard, title, place)
        return sample.value

    def by(self, label: str, dashboard: str, title: str, place: int = 0) -> dict[str, float]:
        """The lines by one label, which must tell them apart."""
        return _by(label, self.lines(dashboard, title, place))

    def answers(self, example: Example) -> list[Sample]:
        """What an example query of the guide, as it is written there, answers about this company."""
        return [
            sample
            for sample in self._ask(example.query)
            if sample.labels.get("company_id", self.company) == self.company
            and sample.labels.get("job", self.job) == self.job
        ]

    def answers_by(self, label: str, example: Example) -> dict[str, float]:
        """The same by one label, which must tell them apart."""
        return _by(label, self.answers(example))

    def increases(self, selector: str, label: str) -> dict[str, Bounds]:
        """Between what the increases of counters over a minute are, by one label, which must tell them apart."""
        return increases(self._env.prometheus, selector, self._env.moment(self.company), label)

    def quantile(self, share: float, metric: str, **labels: str) -> float:
        """A quantile of a histogram on the worker's page: linear within a bucket, the lowest begins at 0."""
        buckets = self._buckets(f"{metric}_bucket", {**labels, "company_id": self.company})
        rank = share * buckets[math.inf]
        lower, before = 0.0, 0.0
        for bound, count in sorted(buckets.items()):
            if count >= rank:
                inside = (rank - before) / (count - before)
                return lower if bound == math.inf else lower + (bound - lower) * inside
            lower, before = bound, count
        raise AssertionError("no bucket holds the rank")

    def _buckets(self, metric: str, labels: dict[str, str]) -> dict[float, float]:
        found: dict[float, float] = {}
        for (name, having), value in series(self.page).items():
            if name == metric and labels.items() <= having:
                bound = float(dict(having)["le"])
                found[bound] = found.get(bound, 0.0) + value
        return found

    def _ask(self, expression: str) -> list[Sample]:
        text = substituted(expression, company=self.company, job=self.job)
        samples = self._env.prometheus.query(text, self._env.moment(self.company))
        return [sample for sample in samples if not math.isnan(sample.value)]


def _by(label: str, samples: list[Sample]) -> dict[str, float]:
    found = {sample.labels[label]: sample.value for sample in samples}
    assert len(found) == len(samples)
    return found
