"""The page of the load generator: the three documented metrics and nothing else, at 0 from the start."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterable

import pytest
from prometheus_client import Counter, Metric
from prometheus_client.parser import text_string_to_metric_families

from demo.load_report import Tally, page
from events.subjects import EVENT_TYPES
from testkit.publisher import PublishError

NAMES = {
    "loadgen_messages_attempted_total",
    "loadgen_messages_published_total",
    "loadgen_publish_errors_total",
}


def read(port: int, accept: str = "text/plain") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, str, str], float]:
    return {
        (sample.name, sample.labels["subject"], sample.labels["company_id"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_series_is_there_at_0_before_anything_is_sent() -> None:
    with page(Tally(["KopiNusa01", "TokoJaya02"]), 0) as port:
        text = read(port)
    assert samples(text) == {
        (name, subject, company): 0
        for name in NAMES
        for subject in EVENT_TYPES
        for company in ("KopiNusa01", "TokoJaya02")
    }


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_no_format_has_further_series(accept: str) -> None:
    with page(Tally(["KopiNusa01"]), 0) as port:
        text = read(port, accept)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert {line.partition("{")[0] for line in lines} == NAMES


def test_no_page_has_more_answers_than_attempts_while_events_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tally = Tally(["KopiNusa01"])
    collect = Counter.collect

    def moving(counter: Counter) -> Iterable[Metric]:
        """With each look at a counter one more event of each type is sent and confirmed."""
        for event_type in EVENT_TYPES:
            for moved in (tally.attempted, tally.confirmed):
                moved.labels(event_type, "KopiNusa01").inc()
        return collect(counter)

    monkeypatch.setattr(Counter, "collect", moving)
    with page(tally, 0) as port:
        found = samples(read(port))
    for subject in EVENT_TYPES:
        attempted, published, errors = (found[name, subject, "KopiNusa01"] for name in sorted(NAMES))
        assert 0 < published + errors <= attempted


def test_the_page_follows_the_counts() -> None:
    tally = Tally(["KopiNusa01"])
    with page(tally, 0) as port:
        for counter, count in ((tally.attempted, 7), (tally.confirmed, 5), (tally.errors, 2)):
            counter.labels("v1.chats.update", "KopiNusa01").inc(count)
        found = samples(read(port))
    assert [found[name, "v1.chats.update", "KopiNusa01"] for name in sorted(NAMES)] == [7, 5, 2]
    assert sum(found.values()) == 14


def test_a_taken_port_is_said_with_its_option() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PublishError, match=f"--metrics-port {port}: .*in use"), page(Tally(["A"]), port):
            pass


def test_the_port_is_free_again_afterwards() -> None:
    with page(Tally(["KopiNusa01"]), 0) as port:
        pass
    with page(Tally(["KopiNusa01"]), port) as again:
        assert again == port
