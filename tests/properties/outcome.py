"""What a case begins with and what it is judged by, whoever plays it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from events.subjects import Tenant
from tables.queries import quoted
from tests.properties.model import Adopted, Expected
from tests.properties.stored import Stored, differences


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


def disagreements(wanted: Mapping[str, Expected], stored: Stored) -> list[str]:
    """Each way in which the tables differ from what the worlds, by their prefixes, ask for."""
    found = [
        difference for prefix, model in wanted.items() for difference in differences(model, stored, prefix)
    ]
    return [*found, *_of_exhausted(wanted.values(), stored)]


def _of_exhausted(wanted: Iterable[Expected], stored: Stored) -> Iterator[str]:
    """Each event that cannot be stored has one row, with the event; no other has one."""
    asked = {version.event: payloads for model in wanted for version, payloads in model.exhausted.items()}
    yield from (f"exhausted {version}: could be stored" for version in stored.exhausted.keys() - asked.keys())
    for version, payloads in asked.items():
        rows = stored.exhausted.get(version, [])
        texts = {json.dumps(row["original_payload"]) for row in rows}
        # What is left of a history batch, and all of it, are kept side by side.
        if not rows or len(rows) != len(texts):
            yield f"exhausted {version}: {len(rows)} rows for {payloads}"
        elif any(row["original_payload"] not in payloads for row in rows):
            yield f"exhausted {version}: {texts} for {payloads}"
