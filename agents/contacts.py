"""Contact events as rows of `contacts` (contract 2.6, 2.7, 3.5)."""

from __future__ import annotations

from events.models import ContactUpdate, ContactUpsert
from tables.last_writer_wins import EventStamp
from tables.mutations import ContactPatch, ContactRow


def row(ref: int, event: ContactUpsert, stamp: EventStamp) -> ContactRow:
    """The row of a contact."""
    return ContactRow(
        ref=ref,
        stamp=stamp,
        chat_id=event.chat_id or "",
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )


def patch(ref: int, event: ContactUpdate, stamp: EventStamp) -> ContactPatch:
    """The new name of a contact; an empty one leaves the name (design 11)."""
    return ContactPatch(
        ref=ref,
        stamp=stamp,
        phone_number=event.phone_number or "",
        company_id=event.company_id or "",
        agent_id=event.agent_id or "",
        push_name=event.push_name or "",
    )
