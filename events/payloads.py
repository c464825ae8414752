"""From the body of a message to its event, by event type."""

from __future__ import annotations

from events.history import HISTORICAL, History, history
from events.models import REALTIME, Event, event
from events.sanitize import sanitize


def decode(event_type: str, body: bytes, company: str) -> Event | History:
    """The event in `body`, checked, or its history batch with all items still to be unpacked.

    Unpacking a batch of a megabyte takes some ten milliseconds. Raises `Malformed` or `Invalid`; the items of a batch
    carry their own errors.
    """
    body = sanitize(body)
    if kind := HISTORICAL.get(event_type):
        return history(kind, body, company)
    return event(REALTIME[event_type], body, company)
