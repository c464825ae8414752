"""What the load generator tells: percentiles that hold, a bar on a terminal only, an honest summary."""

from __future__ import annotations

import io
import random

import pytest

from demo.load_metrics import Counts, Tally
from demo.load_report import Latencies, Progress, State, Summary


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def summary(tally: Tally, *, rate: float = 10.0, planned: int | None = 4, stopped: bool = False) -> Summary:
    return Summary(
        tally=tally,
        latencies=Latencies(),
        reasons={"no stream takes it": 1},
        duplicates=0,
        elapsed=2.0,
        rate=rate,
        planned=planned,
        largest_lag=0.25,
        stopped=stopped,
    )


def counted(attempted: int, confirmed: int) -> Tally:
    tally = Tally(["KopiNusa01", "TokoJaya02"])
    counts = tally.counts["v1.chats.upsert.TokoJaya02"]
    counts.attempted, counts.confirmed, counts.errors = attempted, confirmed, attempted - confirmed
    return tally


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99, 1.0])
def test_a_percentile_is_at_most_two_percent_above_the_exact_one(share: float) -> None:
    rng = random.Random(1)
    values = sorted(rng.lognormvariate(-6, 1.5) for _ in range(2000))
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    exact = values[int(2000 * share) - 1]
    assert exact <= (latencies.quantile(share) or 0) * 1.000001 <= exact * 1.021


def test_latencies_out_of_range_count_at_its_ends_and_none_give_no_percentile() -> None:
    latencies = Latencies()
    assert latencies.quantile(0.5) is None
    latencies.add(0.0)
    assert latencies.quantile(0.5) == pytest.approx(1e-5)
    latencies.add(1e9)
    assert latencies.quantile(1.0) == pytest.approx(1000, rel=0.02)


def test_a_terminal_gets_a_bar_that_is_written_over_itself() -> None:
    out = Terminal()
    progress = Progress(out)
    progress.update(State(1.0, Counts("", "", 50, 40, 2), 0.5, 0.0))
    assert out.getvalue().startswith("\r\x1b[K[########........]  50%  confirmed 40 (40/s)")
    assert "\n" not in out.getvalue()


def test_the_full_bar_stays_on_the_terminal() -> None:
    out = Terminal()
    progress = Progress(out)
    progress.update(State(1.0, Counts("", "", 100, 100, 0), 1.0, 0.0))
    progress.end()
    progress.say("done")
    assert out.getvalue().endswith("behind 0.0 s\n\r\x1b[Kdone\n")
    assert f"[{'#' * 16}] 100%" in out.getvalue()


def test_a_line_on_a_terminal_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    out = Terminal()
    Progress(out).update(State(1.0, Counts("", "", 50, 40, 2), 0.5, 0.0))
    assert len(out.getvalue().removeprefix("\r\x1b[K")) == 29


def test_a_log_gets_plain_lines_whose_rate_is_that_since_the_line_before() -> None:
    out = io.StringIO()
    progress = Progress(out)
    progress.update(State(5.0, Counts("", "", 50, 50, 0), 0.25, 0.0))
    progress.update(State(10.0, Counts("", "", 80, 75, 5), 0.5, 1.5))
    assert out.getvalue().splitlines() == [
        " 25%  confirmed 50 (10/s)  errors 0  behind 0.0 s",
        " 50%  confirmed 75 (5/s)  errors 5  behind 1.5 s",
    ]


def test_a_run_without_an_end_tells_its_age_instead_of_a_share() -> None:
    out = io.StringIO()
    Progress(out).update(State(5.0, Counts("", "", 5, 5, 0), None, 0.0))
    assert out.getvalue().startswith("5 s  confirmed 5")


def test_a_run_is_well_only_if_every_attempt_was_confirmed() -> None:
    assert summary(counted(4, 4)).ok
    assert not summary(counted(4, 3)).ok


def test_the_summary_tells_counts_reasons_rate_and_lag() -> None:
    lines = summary(counted(3, 2), stopped=True).text().splitlines()
    assert "v1.chats.upsert                 3          2        1" in lines
    assert "attempted   3 of 4 planned, stopped by a signal" in lines
    assert "confirmed   2" in lines
    assert "errors      1" in lines
    assert "            1 x no stream takes it" in lines
    assert "rate        1.0 events/s in 2.0 s, 10 asked for, at most 0.250 s behind schedule" in lines


def test_the_summary_of_a_run_as_fast_as_confirmed_has_no_schedule() -> None:
    assert "as fast as confirmed" in summary(counted(4, 4), rate=0.0, planned=None).text()
