"""A page of metrics, series by series."""

from __future__ import annotations

from functools import cache

from prometheus_client.parser import text_string_to_metric_families

from testkit.worker import Scrape

Series = tuple[str, frozenset[tuple[str, str]]]


@cache
def series(page: Scrape) -> dict[Series, float]:
    """Every series of a page, by name and labels, with its value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }
