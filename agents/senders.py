"""Whom an event names: the agent that metrics count, and the sender who is to be onboarded."""

from __future__ import annotations

from agents.onboarding import OnboardingTask, wants_onboarding
from agents.received_event import ReceivedEvent
from events import models
from events.errors import EventError
from events.senders import sender_phone
from tables.last_writer_wins import EventStamp


def onboarding_task(work: ReceivedEvent) -> OnboardingTask | None:
    """What onboarding has to do for this event, if anything (contract 5.1)."""
    message = work.incoming
    if message is None or message.flow != "IN":
        return None
    phone = sender_phone(message.from_phone or "", message.jid or "", message, message.key)
    if not wants_onboarding(message.flow, phone, message.jid or ""):
        return None
    return OnboardingTask(
        agent_id=message.agent_id or "",
        from_phone=phone,
        message_id=message.message_id or "",
        message_timestamp=message.sent_at,
        chat_id=message.chat_id or "",
        jid=message.jid or "",
        campaign=message.campaign,
        stamp=EventStamp(work.source.version, work.source.metadata),
    )


def named_agent(event: models.Event | models.History | EventError | None) -> tuple[str, str]:
    """The agent and jid that metric 4 counts (contract 9.5), also of an invalid event; empty where there is none."""
    if isinstance(event, models.History):
        first = event.items[0].event if event.items else None
        return event.agent_id or getattr(first, "agent_id", None) or "", ""
    return getattr(event, "agent_id", None) or "", getattr(event, "jid", None) or ""
