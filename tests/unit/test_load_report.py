"""What the load generator tells: percentiles that hold, a bar on a terminal only, an honest summary."""

from __future__ import annotations

import io
import random
import time

import pytest

from demo.load_options import parse
from demo.load_report import Latencies, LoadReport, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(attempted: int, confirmed: int, errors: int, *options: str) -> LoadReport:
    """Of a run that has just begun."""
    made = LoadReport(parse(["--companies", "KopiNusa01,TokoJaya02", *options]))
    tally = made.tally
    for counter, count in zip(
        (tally.attempted, tally.confirmed, tally.errors), (attempted, confirmed, errors), strict=True
    ):
        counter.labels("v1.chats.upsert", "TokoJaya02").inc(count)
    return made


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99, 1.0])
def test_a_percentile_is_at_most_two_percent_above_the_exact_one(share: float) -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(-6, 1.5) for _ in range(2000))
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = values[int(2000 * share) - 1]
    assert exact <= (latencies.quantile(share) or 0) * 1.000001 <= exact * 1.021


def test_latencies_below_the_shortest_count_as_that_and_none_give_no_percentile() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    latencies.add(0.0)
    assert latencies.quantile(0.5) == pytest.approx(1e-5)
    latencies.add(1e9)
    assert latencies.quantile(1.0) == pytest.approx(1e9, rel=0.02)


def test_a_terminal_gets_a_bar_that_is_written_over_itself(clock: Clock) -> None:
    out = Terminal()
    progress, clock.now = Progress(out), 1.0
    progress.update(report(50, 40, 2, "--events", "100"))
    assert out.getvalue().startswith("\r\x1b[K[########........]  50%  confirmed 40 (40/s)")
    assert "\n" not in out.getvalue()


def test_the_full_bar_stays_on_the_terminal() -> None:
    out = Terminal()
    progress = Progress(out)
    progress.update(report(100, 100, 0, "--events", "100"))
    progress.end()
    progress.say("done")
    assert out.getvalue().endswith("behind 0.0 s\n\r\x1b[Kdone\n")
    assert f"[{'#' * 16}] 100%" in out.getvalue()


def test_a_line_on_a_terminal_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    Progress(out).update(report(50, 40, 2, "--events", "100"))
    assert len(out.getvalue().removeprefix("\r\x1b[K")) == 29


def test_a_log_gets_plain_lines_whose_rate_is_that_since_the_line_before(clock: Clock) -> None:
    out = io.StringIO()
    progress = Progress(out)
    clock.now = 5.0
    progress.update(report(50, 50, 0, "--events", "200"))
    clock.now = 10.0
    late = report(80, 75, 5, "--duration", "20", "--rate", "0")
    late.late(1.5)
    progress.update(late)
    assert out.getvalue().splitlines() == [
        " 25%  confirmed 50 (10/s)  errors 0  behind 0.0 s",
        " 50%  confirmed 75 (5/s)  errors 5  behind 1.5 s",
    ]


def test_a_run_without_an_end_tells_its_age_instead_of_a_share(clock: Clock) -> None:
    out, clock.now = io.StringIO(), 5.0
    Progress(out).update(report(5, 5, 0))
    assert out.getvalue().startswith("5 s  confirmed 5")


def test_a_run_is_well_only_if_every_attempt_was_confirmed() -> None:
    assert report(4, 4, 0).ok
    assert not report(4, 3, 1).ok


def test_the_summary_tells_counts_reasons_rate_and_lag() -> None:
    made = report(3, 2, 1, "--events", "4", "--rate", "10")
    made.reasons["no stream takes it"] = 1
    made.ended, made.stopped = 2.0, True
    made.late(0.25)
    lines = made.text().splitlines()
    assert "v1.chats.upsert                 3          2        1" in lines
    assert "attempted   3 of 4 planned, stopped by a signal" in lines
    assert "confirmed   2" in lines
    assert "errors      1" in lines
    assert "            1 x no stream takes it" in lines
    assert "rate        1.0 events/s in 2.0 s, 10 asked for, at most 0.250 s behind schedule" in lines


def test_the_summary_of_a_run_as_fast_as_confirmed_has_no_schedule() -> None:
    assert "as fast as confirmed" in report(4, 4, 0, "--rate", "0").text()
