"""Our series say on /metrics what prometheus_client's say after the same changes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streams.monitoring.series import Distributions, Family, Numbers

BOUNDS: Final = (0.001, 0.5, 1, 2.5, 1_000_000)
LABELS: Final = ("event_type", "company_id")
# Names of companies may have anything in them but a few separators.
VALUES: Final = ("", "KopiNusa", 'a"b\\c\nd', "Café \N{BANKNOTE WITH YEN SIGN}", "{},=")
AMOUNTS: Final = (0, 1, 0.1, 1 / 3, 0.001, 0.0010001, 999_999, 1_000_000, 123_456_789, 1e-9, 1e20)
HELP: Final = 'With a \\, a "quote"\nand a second line.'


def samples(text: str) -> list[tuple[str, str, str, list[tuple[str, str]], float]]:
    """All that a page says, in an order of its own."""
    return sorted(
        (family.type, family.documentation, sample.name, sorted(sample.labels.items()), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def changes(seed: int) -> Iterator[tuple[tuple[str, str], float]]:
    some = random.Random(seed)
    for _ in range(200):
        yield (some.choice(VALUES), some.choice(VALUES)), some.choice(AMOUNTS)


@pytest.mark.parametrize("seed", range(5))
def test_the_page_is_that_of_prometheus_client(seed: int) -> None:
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    counter = prometheus_client.Counter("c_total", HELP, LABELS, registry=registry)
    gauge = prometheus_client.Gauge("g", HELP, LABELS, registry=registry)
    histogram = prometheus_client.Histogram("h", HELP, LABELS, buckets=BOUNDS, registry=registry)
    counters, gauges = (
        Numbers("c_total", "counter", HELP, LABELS),
        Numbers("g", "gauge", HELP, LABELS),
    )
    histograms = Distributions("h", HELP, LABELS, BOUNDS)
    for labels, amount in changes(seed):
        counter.labels(*labels).inc(amount)
        counters.labels(*labels).inc(amount)
        gauge.labels(*labels).set(-amount)
        gauges.labels(*labels).set(-amount)
        histogram.labels(*labels).observe(amount)
        histograms.labels(*labels).observe(amount)
        if amount == 1:
            gauge.remove(*labels)
            gauges.remove(*labels)
    ours = "".join(part for family in (counters, gauges, histograms) for part in family.text())
    assert samples(ours) == samples(generate_latest(registry).decode())


def test_a_metric_without_labels_and_one_without_series_are_as_prometheus_client_writes_them() -> None:
    registry = CollectorRegistry()
    prometheus_client.Gauge("alone", "Alone.", registry=registry).set(2.5)
    prometheus_client.Gauge("empty", "Empty.", ("label",), registry=registry)
    alone, empty = Numbers("alone", "gauge", "Alone.", ()), Numbers("empty", "gauge", "Empty.", ("label",))
    alone.labels().set(2.5)
    assert "".join((*alone.text(), *empty.text())).encode() == generate_latest(registry)


@pytest.mark.parametrize(
    "family", [Numbers("n", "gauge", "N.", LABELS), Distributions("d", "D.", LABELS, BOUNDS)]
)
def test_a_wrong_number_of_label_values_is_refused(family: Family) -> None:  # type: ignore[type-arg] # of any child
    with pytest.raises(ValueError, match="event_type, company_id"):
        family.labels("only one")
    assert not family.children


def test_a_series_is_the_same_one_each_time_and_starts_at_0_after_it_was_removed() -> None:
    family = Numbers("n", "gauge", "N.", ("company_id",))
    family.labels("KopiNusa").set(7)
    assert family.labels("KopiNusa").value == 7
    family.remove("KopiNusa")
    family.remove("KopiNusa")
    assert family.labels("KopiNusa").value == 0


def test_series_that_come_and_go_while_the_page_is_made_break_nothing() -> None:
    family = Numbers("n", "gauge", "N.", ("company_id",))
    for number in range(10):
        family.labels(f"Toko{number}")
    text = family.text()
    read = [next(text), next(text)]
    family.remove("Toko5")
    family.labels("Late")
    read += text
    assert len(read) == 11
    assert "Late" not in "".join(read)
