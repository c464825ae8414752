"""Numbers on the pages and in the demo that follow from the defaults of the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from streams.config.scalars import duration
from streams.config.settings import Settings, variables

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
DEFAULTS: Final = {each.name: each.default or "" for each in variables()}
# `STOP_TIMEOUT` (28 s), `STOP_TIMEOUT`, 28 s, `NATS_DLQMAXAGEDAYS` old (7)
_BESIDE: Final = re.compile(
    r"`([A-Z_]{6,})`(?: \w+)?(?:,| is| \() ?\(?(\d+(?:\.\d+)?)(?: (ms|s|min|minutes|h|days)\b)?(?=[;,.)\n]|$)",
    re.MULTILINE,
)
DEFAULT: Final = Settings.from_env({"COMPANY_ID": "KopiNusa", "POSTGRES_DSN": "postgres://db/wa"})


def until_dead_letter() -> float:
    """Seconds from the first real-time delivery of an event that fails again and again to its last one."""
    retries = range(DEFAULT.realtime_max_deliver - 1)
    return sum(
        min(DEFAULT.realtime_nak_base_delay * float(2**retry), DEFAULT.realtime_nak_max_delay)
        for retry in retries
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_number_beside_a_variable_is_its_default(page: Path) -> None:
    for name, number, unit in _BESIDE.findall(page.read_text()):
        if name in DEFAULTS and unit in ("ms", "s", "min", "minutes", "h") and DEFAULTS[name][-1].isalpha():
            assert duration()(number + unit.removesuffix("inutes").removesuffix("in")) == duration()(
                DEFAULTS[name]
            ), name
        elif name in DEFAULTS:
            assert number == DEFAULTS[name], name


def test_pages_do_give_numbers_beside_variables() -> None:
    found = {name for page in PAGES for name, *_ in _BESIDE.findall(page.read_text())}

    assert {"STOP_TIMEOUT", "STALL_TIMEOUT", "NATS_DLQMAXAGEDAYS"} <= found


@pytest.mark.parametrize("file", ["demo/run.py"])
def test_demo_says_how_long_an_update_without_its_row_is_retried(file: str) -> None:
    assert f"an update without its row is tried for {until_dead_letter():g} s" in (ROOT / file).read_text()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("docs/dead-letters.md", f"after {DEFAULT.dlq_base_delay_minutes:g} min"),
        ("docs/operations.md", f"{DEFAULT.realtime_batch_size} real-time events"),
        ("docs/operations.md", f"{DEFAULT.historical_batch_size} history batches"),
        ("docs/operations.md", f"{DEFAULT.dlq_batch_size} dead letters"),
        ("docs/operations.md", f"ack wait ({DEFAULT.realtime_ack_wait:g} s"),
        ("docs/operations.md", f"history {DEFAULT.historical_ack_wait:g} s)"),
        ("docs/operations.md", f"maximum of deliveries ({2 * DEFAULT.realtime_max_deliver};"),
        ("docs/operations.md", f"history {2 * DEFAULT.historical_max_deliver})"),
        ("docs/troubleshooting.md", f"{DEFAULT.dlq_base_delay_minutes:g} minutes between replays"),
    ],
)  # fmt: skip
def test_a_number_in_a_sentence_follows_from_the_defaults(file: str, text: str) -> None:
    assert text in (ROOT / file).read_text()
