"""A Prometheus process of the tests, with a client for its queries."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import testkit.prometheus
from tests.programs import required

# Between two scrapes; short, so that a few seconds of traffic are enough samples for `rate`.
_INTERVAL: Final = "1s"
_POLL: Final = 0.1
_PATIENCE: Final = 60.0


class Sample(NamedTuple):
    """One series of an answer, with its value."""

    labels: dict[str, str]
    value: float


class Prometheus(testkit.prometheus.Prometheus):
    """The demo's, asked the tests' questions; `jobs` are targets by job name, `rules` files."""

    def __init__(
        self, jobs: Mapping[str, Sequence[str]], rules: Sequence[Path] = (), *, interval: str = _INTERVAL
    ) -> None:
        super().__init__(required("prometheus"), jobs, rules, interval=interval)

    def get(self, resource: str, **parameters: str) -> Any:
        """`data` of an answer of the HTTP API. Fails with Prometheus's own words."""
        url = f"{self.url}/api/v1/{resource}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str, at: float | None = None) -> list[Sample]:
        """Evaluate at a moment (Unix seconds; None: now). Fails with Prometheus's own words."""
        moment = {} if at is None else {"time": f"{at:.3f}"}
        data = self.get("query", query=expression, **moment)
        if data["resultType"] == "scalar":
            return [Sample({}, float(data["result"][1]))]
        return [Sample(series["metric"], float(series["value"][1])) for series in data["result"]]

    def value(self, expression: str, at: float | None = None) -> float:
        """The one value of an expression; NaN if it has none."""
        samples = self.query(expression, at)
        assert len(samples) <= 1, f"{expression} has {len(samples)} values"
        return samples[0].value if samples else math.nan

    def series(self, selector: str) -> list[dict[str, str]]:
        """The labels of every series that a selector finds."""
        found: list[dict[str, str]] = self.get("series", **{"match[]": selector})
        return found

    def comes_to(self, expected: float, expression: str, within: float = _PATIENCE) -> None:
        """Wait until an expression has this value."""
        deadline = time.monotonic() + within
        while (found := self.value(expression)) != expected and time.monotonic() < deadline:
            time.sleep(_POLL)
        assert found == expected, expression

    def scraped_since(self, moment: float, metric: str, within: float = _PATIENCE) -> float:
        """Wait until a metric was scraped after a moment; when that was (Unix seconds)."""
        deadline = time.monotonic() + within
        while math.isnan(found := self.value(f"max(timestamp({metric}) > {moment:.3f})")):
            assert time.monotonic() < deadline, f"{metric} was not scraped in {within:g} s"
            time.sleep(_POLL)
        return found
