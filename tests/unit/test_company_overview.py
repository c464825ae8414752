"""How `companies` orders and words what it found."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.cli.company_overview import Overview, as_objects, as_table
from streams.cli.formatting import size
from streams.jetstream.company_lag import Lag

QUIET = Overview("Quiet", "daisi_quiet", "fleet", True, 7, Lag(0, 0), Lag(0, 0), 0, 25_000)


def test_those_in_trouble_come_first_and_those_left_out_on_purpose_are_in_none() -> None:
    unserved = replace(QUIET, company="Unserved", service="nobody", is_served=False, lag=None)
    behind = replace(QUIET, company="Behind", lag=Lag(3, 40))
    letters = replace(QUIET, company="Letters", dead_letters=Lag(1, 1))
    given_up = replace(QUIET, company="GivenUp", exhausted=2)
    left_out = replace(QUIET, company="ZLeftOut", service="excluded", is_served=False, lag=None)
    idle = replace(QUIET, company="Idle", service="nobody", is_served=False, lag=None, stored=0)
    wanted = [unserved, behind, letters, given_up, idle, QUIET, left_out]

    found = [*wanted[3:], *wanted[:3]]
    assert sorted(found, key=lambda each: each.trouble) == wanted


def test_what_is_not_known_is_empty_in_the_table_and_null_in_json() -> None:
    strange = Overview(None, "daisi_old", "nobody", False, 0, None, None, None, None)
    known = replace(QUIET, company="Kopi\x1b[31m", lag=Lag(3, 40), dead_letters=Lag(2, 2))
    heading, first, second = as_table([known, strange]).splitlines()
    assert heading.split() == ["company", "lag", "dead", "letters", "exhausted", "size", "served", "by"]
    assert first.split() == ["Kopi\ufffd[31m", "3..40", "2", "0", "25", "kB", "fleet"]
    assert second.split() == ["(daisi_old)", "nobody"]
    assert as_objects([known, strange])[0]["lag"] == {"least": 3, "most": 40}
    assert as_objects([known, strange])[1]["lag"] is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (9_999, "9999 B"),
        (10_000, "10 kB"),
        (9_876_543_210, "9877 MB"),
        (12_345_678_901, "12 GB"),
    ],
)
def test_sizes_have_two_to_four_digits(number: int | None, text: str) -> None:
    assert size(number) == text
