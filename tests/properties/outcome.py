"""What a case begins with, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from events.subjects import Tenant
from tables.queries import quoted
from testkit.accounting import Accounting, Report
from testkit.differences import Problem
from testkit.evidence import Evidence
from testkit.items import Table
from testkit.oracle import Expected, Published
from tests import strict


class Adopted(NamedTuple):
    """A row without versions, of the service that this one replaces."""

    table: Table
    key: str
    values: Mapping[str, Any]


def rows_of(adopted: Iterable[Adopted]) -> Expected:
    """These rows, as they are before any event."""
    before = Expected()
    for table, key, values in adopted:
        row = before.make(table, key)
        row.newest = {column: (value, None) for column, value in values.items()}
        # It has no version in any row.
        if "conversation_timestamp" in row.newest:
            row.unversioned["conversation_timestamp"], _ = row.newest.pop("conversation_timestamp")
        # Zero unread messages are a value.
        row.closed = frozenset(
            column
            for column, (value, _) in row.newest.items()
            if column == "unread_count" or value not in ("", None, False)
        )
    return before


async def leave(connection: Any, tenant: Tenant, adopted: Iterable[Adopted]) -> None:
    """Insert the rows of the existing service, as that has them: without versions and without keys."""
    columns = {"messages": ("message_id", "message_date"), "chats": ("chat_id", "jid")}
    for row in adopted:
        key, other = columns[row.table]
        fields = {key: row.key, "company_id": tenant.company, **row.values, "last_metadata": "{}"}
        places = ", ".join(f"${number}" for number in range(1, 1 + len(fields)))
        value = "'2026-11-20'" if other == "message_date" else "''"
        await connection.execute(
            f"INSERT INTO {quoted(tenant.schema)}.{row.table} ({', '.join(fields)}, {other})"
            f" VALUES ({places}, {value})",
            *fields.values(),
        )


def problems(
    company: str, events: Sequence[Published], adopted: Sequence[Adopted], evidence: Evidence
) -> list[Problem]:
    """Each way in which the tables differ from what the events ask for; a needless dead letter is one, too."""
    report = Report()
    Accounting(company, events, evidence, before=rows_of(adopted)).add_to(report)
    return [*report.problems, *strict.problems(company, events, evidence, before=rows_of(adopted))]
