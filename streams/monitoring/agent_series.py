"""The counter of deliveries by agent and jid, whose labels come from events and are therefore bounded."""

from __future__ import annotations

from typing import Final

from events.sanitize import valid_text
from events.subjects import EVENT_TYPES
from streams.monitoring.series import Number, Numbers

OTHER: Final = "other"
AGENT_LIMIT: Final = 1000
# Characters of a label that comes from an event.
LABEL_LENGTH: Final = 128


class _Bounded:
    """The values of one label: at most `limit` distinct ones beside the empty one, all others are `other`."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._seen = {""} if limit else set[str]()

    def admit(self, value: str) -> str:
        if value not in self._seen:
            if self._room <= 0:
                return OTHER
            self._room -= 1
            self._seen.add(value)
        return value


class AgentSeries:
    """The series of `counter` by agent and jid: at most 1000 agents, `jid_limit` jids, and not all pairs of them."""

    def __init__(self, counter: Numbers, *, jid_limit: int) -> None:
        self._counter = counter
        self._agents = _Bounded(AGENT_LIMIT)
        self._jids = _Bounded(jid_limit)
        self._children: dict[tuple[str, str, str, str], Number] = {}
        self._limit = len(EVENT_TYPES) * max(AGENT_LIMIT, jid_limit)

    def count(self, company: str, event_type: str, agent_id: str, jid: str) -> None:
        """Count one delivery."""
        # Bounded first: looking up children of labels that are `other` anyway took a tenth of a worker's time.
        agent = self._agents.admit(agent_id[:LABEL_LENGTH])
        contact = self._jids.admit(jid[:LABEL_LENGTH])
        child = self._children.get((company, event_type, agent, contact))
        if child is None:
            child = self._child(company, event_type, agent, contact)
        child.inc()

    def _child(self, company: str, event_type: str, agent: str, contact: str) -> Number:
        if len(self._children) >= self._limit:
            agent = contact = OTHER
        key = (company, event_type, agent, contact)
        if key not in self._children:
            labels = (event_type, company or "unknown", valid_text(agent), valid_text(contact))
            self._children[key] = self._counter.labels(*labels)
        return self._children[key]
