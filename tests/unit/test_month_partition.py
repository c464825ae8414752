"""Statements for the partition of one month."""

from __future__ import annotations

import datetime

import pytest

from tables.month_partition import EPOCH, month_of, name_of, of_month
from tables.queries import load


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [
        ("2026-11-30", "2026-11-01", "2026-11-30"),
        ("2026-12-01", "2026-12-01", "2026-12-31"),
        ("2024-02-11", "2024-02-01", "2024-02-29"),
        ("1969-12-31", "1969-12-01", "1969-12-31"),
    ],
)
def test_a_statement_names_the_month_of_a_day(day: str, first: str, last: str) -> None:
    month = month_of((datetime.date.fromisoformat(day) - EPOCH).days)
    assert month is not None
    text = of_month(
        "SELECT FROM \"s\".messages AS m WHERE d BETWEEN DATE '-infinity' AND DATE 'infinity'", month
    )
    assert text == f"SELECT FROM \"s\".{name_of(month)} AS m WHERE d BETWEEN DATE '{first}' AND DATE '{last}'"
    assert name_of(month) == f"messages_y{first[:4]}m{first[5:7]}"


@pytest.mark.parametrize(
    "day", [10**8, -(10**8), (datetime.date.min - EPOCH).days, (datetime.date.max - EPOCH).days]
)
def test_a_day_that_no_partition_can_be_for_has_no_month(day: int) -> None:
    assert month_of(day) is None


@pytest.mark.parametrize("name", ["lock", "update"])
def test_the_statements_that_are_meant_name_their_table_once(name: str) -> None:
    text = load("messages", "daisi_kopi")[name]
    ours = of_month(text, datetime.date(2026, 11, 1))
    assert text.count(".messages AS m") == ours.count(".messages_y2026m11 AS m") == 1
    assert "DATE '-infinity'" not in ours
    assert "DATE 'infinity'" not in ours
