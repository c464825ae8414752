"""Connection events as rows of `agents` (contract 2.8, 3.6)."""

from __future__ import annotations

from events.models import ConnectionUpdate
from tables.last_writer_wins import EventStamp
from tables.mutations import AccountRow


def row(ref: int, event: ConnectionUpdate, stamp: EventStamp) -> AccountRow:
    """The state of an agent; empty fields leave what is stored."""
    return AccountRow(
        ref=ref,
        stamp=stamp,
        agent_id=event.agent_id or "",
        company_id=event.company_id or "",
        qr_code=event.qr_code or "",
        status=event.status or "",
        agent_name=event.agent_name or "",
        phone_number=event.phone_number or "",
        host_name=event.host_name or "",
        version=event.version or "",
    )
