"""Subjects, event types and tenants: their names and forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ConsumerType = Literal["realtime", "historical", "dlq"]

REALTIME: Final = (
    "v1.connection.update",
    "v1.chats.update",
    "v1.chats.upsert",
    "v1.messages.update",
    "v1.messages.upsert",
    "v1.contacts.update",
    "v1.contacts.upsert",
)
HISTORICAL: Final = ("v1.history.chats", "v1.history.messages", "v1.history.contacts")
EVENT_TYPES: Final = REALTIME + HISTORICAL

# In `COMPANY_ID`, in the filter of a consumer and as a label: every company. No company can have this name.
ALL_COMPANIES: Final = "*"
# PostgreSQL cuts identifiers at 63 bytes, and the schema is `daisi_` + company.
MAX_COMPANY_BYTES: Final = 57
_FORBIDDEN: Final = frozenset(".*>/\\")


def event_type(subject: str) -> str | None:
    """The base subject that `subject` belongs to, or None if it is not one of ours (SUB-2)."""
    if subject in EVENT_TYPES:
        return subject
    base, dot, _ = subject.rpartition(".")
    return base if dot and base in EVENT_TYPES else None


def consumer_type(event: str) -> ConsumerType:
    """Which of the two consumers carries this event type."""
    return "historical" if event in HISTORICAL else "realtime"


def company_problem(company: str) -> str | None:
    """Why `company` cannot be a tenant token, or None if it can (SUB-4)."""
    if not company:
        return "is empty"
    if any(char.isspace() or char in _FORBIDDEN or ord(char) < 32 for char in company):
        return f"{company!r} contains whitespace or one of . * > / \\"
    # What the environment holds besides UTF-8 arrives as surrogates.
    if any("\ud800" <= char <= "\udfff" for char in company):
        return f"{company!r} is not valid UTF-8"
    # Some letters take more bytes in lower case, as which they stand in the schema's name.
    if max(len(company.encode()), len(company.lower().encode())) > MAX_COMPANY_BYTES:
        return f"{company!r} is longer than {MAX_COMPANY_BYTES} bytes"
    return None


@dataclass(frozen=True, slots=True)
class Tenant:
    """One company: everything that is kept apart between tenants hangs on this value."""

    company: str

    @property
    def schema(self) -> str:
        """The tenant's schema, unquoted; only here is the company's case lowered."""
        return f"daisi_{self.company.lower()}"

    def subject(self, base: str) -> str:
        """The full subject of this tenant for a base subject."""
        return f"{base}.{self.company}"
