"""Statements for one month's partition by its name, instead of the table of all months.

A worker of hundreds of companies has each statement planned for each of them, on each connection. Over 26 partitions
with eight indexes each a plan takes milliseconds and megabytes of the server's process, over one a fraction of that. A
range of days in the statement would leave out the others as well, but draws the planner to the index on the day alone
while a partition is still empty: the plan that is kept would read whole months.
"""

from __future__ import annotations

import datetime
from typing import Final

EPOCH: Final = datetime.date(1970, 1, 1)
# Days since 1970 that a date of Python can express, with some room.
_FIRST, _LAST = (
    (datetime.date(year, 1, 1) - EPOCH).days for year in (datetime.MINYEAR + 1, datetime.MAXYEAR)
)


def name_of(month: datetime.date) -> str:
    """The partition that takes the rows of a month, given by its first day."""
    return f"messages_y{month.year}m{month.month:02}"


def month_of(day: int) -> datetime.date | None:
    """The first day of the month of a day since 1970; None if no date of Python has it."""
    if not _FIRST <= day < _LAST:
        return None
    return (EPOCH + datetime.timedelta(days=day)).replace(day=1)


def last_day(month: datetime.date) -> datetime.date:
    """The last day of a month, given by its first day."""
    return (month + datetime.timedelta(days=31)).replace(day=1) - datetime.timedelta(days=1)


def of_days(text: str, first: datetime.date, last: datetime.date) -> str:
    """A statement that says `BETWEEN DATE '-infinity' AND DATE 'infinity'`, for these days only."""
    return text.replace("DATE '-infinity'", f"DATE '{first}'").replace("DATE 'infinity'", f"DATE '{last}'")


def of_month(text: str, month: datetime.date) -> str:
    """A statement on `messages AS m`, for the partition of a month, which has to be there."""
    return of_days(text, month, last_day(month)).replace(".messages AS m", f".{name_of(month)} AS m")
