"""Contact events as rows of `contacts` (contract 2.6, 2.7, 3.5)."""

from __future__ import annotations

from events.models import ContactUpdate, ContactUpsert
from tables.contacts import ContactPatch, ContactRow
from tables.last_writer_wins import Origin


def row(ref: int, event: ContactUpsert, origin: Origin) -> ContactRow:
    """The row of a contact."""
    return ContactRow(
        ref=ref,
        origin=origin,
        chat_id=event.chat_id or "",
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )


def patch(ref: int, event: ContactUpdate, origin: Origin) -> ContactPatch:
    """The new name of a contact; an empty one leaves the name (design 11)."""
    return ContactPatch(
        ref=ref,
        origin=origin,
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )
