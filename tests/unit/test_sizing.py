"""The numbers of docs/performance.md are those of the processor, and its plan follows from its formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from events.subjects import Tenant
from streams.config.settings import variables
from streams.jetstream.specs import consumers
from tests.reconcile import default_settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "performance.md"
# Batches of a source: the one that its agent writes, and the next, pulled and decoded.
BATCHES: Final = 2
# Real-time, historical, dead letters.
CONSUMERS_OF_A_COMPANY: Final = 3
DAY: Final = 86_400


def plan(row: str) -> float:
    """The number of a row of the plan's table."""
    [cell] = re.findall(rf"^\| {re.escape(row)} \| (?:> )?([\d,.]+)", PAGE.read_text(), re.MULTILINE)
    return float(cell.replace(",", ""))


def test_the_numbers_of_the_page_are_those_of_the_processor() -> None:
    defaults, topology = {each.name: each.default for each in variables()}, default_settings()
    text = PAGE.read_text()
    realtime, historical = defaults["NATS_REALTIME_BATCHSIZE"], defaults["NATS_HISTORICAL_BATCHSIZE"]
    dead_letters = defaults["NATS_DLQBATCHSIZE"]

    assert f"Batches are of {realtime} real-time events" in text
    assert f"{historical} history messages, {dead_letters} dead letters" in text
    assert topology.realtime_max_age_days == topology.historical_max_age_days == 30
    assert "With the streams' default of 30 days" in text
    assert f"by the ack wait, {topology.realtime_ack_wait:g} s" in text
    assert f"replicas x {realtime} x {BATCHES} batches" in text
    assert len(consumers(topology, Tenant("CompanyA"))) == CONSUMERS_OF_A_COMPANY


def test_the_plan_follows_from_the_formulas() -> None:
    day_mean, pool = 0.58 * plan("events in the peak hour"), 10
    workers, groups = 8, 4  # of cell 2, the busiest

    assert plan("workers") == 2 * plan("groups of companies")
    assert plan("memory of a worker") == 85 + 3 * 50
    assert plan("max_ack_pending, if set") == 2 * 500 * BATCHES
    assert plan("most connections") == (workers + groups) * pool
    assert plan("consumers") == plan("companies") * CONSUMERS_OF_A_COMPANY
    # Terabytes: events of 851 bytes in three copies, for three days.
    assert plan("disk for streams, all") == pytest.approx(day_mean * 851 * 3 * 3 * DAY / 1e12, rel=0.02)
    assert plan("disk for rows, all") == pytest.approx(8.0 * (30 + 31), rel=0.01)
