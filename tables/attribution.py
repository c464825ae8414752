"""What an incoming message means for its sender's contact and log row (ONB-4 to ONB-10); no SQL here.

Messages may come late or again, so everything is decided by versions and ends the same in any order: the
message with the lowest version is the first one and gives the origin, the highest gives `assigned_to`, tags are a
set that grows. One tag is taken back: `Onboarded`, if it was added for a plain message and a campaign message turns
out to have come before it, since after a campaign a plain message adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from tables.contact_index import Contact, ContactIndex, derived_chat_id
from tables.last_writer_wins import EventStamp, Version, encode_metadata, parse

PLAIN_ORIGIN: Final = "DirectChat"
PLAIN_TAG: Final = "Onboarded"
_GROUP: Final = "@g.us"


class CampaignAttribution(NamedTuple):
    """What a campaign message carries."""

    tags: str
    assigned_to: str
    origin: str


class Incoming(NamedTuple):
    """An incoming message whose sender is to be onboarded; `phone` is cleaned and not empty."""

    agent_id: str
    phone: str
    message_id: str
    sent_at: int  # Unix seconds
    chat_id: str
    jid: str
    campaign: CampaignAttribution | None
    stamp: EventStamp

    @property
    def pair(self) -> tuple[str, str]:
        """Who is onboarded where."""
        return self.agent_id, self.phone

    @property
    def contact_chat_id(self) -> str:
        """The chat_id that a contact made for it should get."""
        if self.jid.endswith(_GROUP):
            return derived_chat_id(self.agent_id, self.phone)
        return self.chat_id


@dataclass(slots=True, eq=False)
class LogRow:
    """One row of `onboarding_log`; without `stored_id` it is new, without version it is not ours to correct."""

    agent_id: str
    phone: str
    stored_id: int | None = None
    version: Version | None = None
    message_id: str = ""
    sent_at: int = 0
    last_metadata: str = ""
    changed: bool = False

    def take(self, message: Incoming) -> None:
        """Name `message` as the first one."""
        self.version = message.stamp.version
        self.message_id = message.message_id
        self.sent_at = message.sent_at
        self.last_metadata = encode_metadata(message.stamp.metadata, message.stamp.version)
        self.changed = True


Logs = dict[tuple[str, str], LogRow]


def onboard(index: ContactIndex, logs: Logs, company: str, message: Incoming) -> bool:
    """Apply `message` to the contacts and logs at hand; returns whether a contact was made.

    A pair that is in the log, but whose contact somebody deleted, gets no new one.
    """
    log = logs.get(message.pair)
    contact = index.find(company, message.agent_id, message.phone, message.contact_chat_id)
    created = False
    if contact is not None:
        _update(index, contact, log, message)
    elif log is None:
        _create(index, company, message)
        created = True
    if log is None:
        log = logs[message.pair] = LogRow(message.agent_id, message.phone)
        log.take(message)
    elif _precedes(message, log.version):
        log.take(message)
    return created


def _precedes(message: Incoming, other: Version | None) -> bool:
    version = message.stamp.version
    return version is not None and other is not None and other.supersedes(version)


def _version_text(message: Incoming) -> str:
    return str(message.stamp.version or "")


def _create(index: ContactIndex, company: str, message: Incoming) -> None:
    contact = index.add(company, message.agent_id, message.phone, message.contact_chat_id)
    contact.first_message_id = message.message_id
    contact.first_message_timestamp = message.sent_at
    versioned = ["first_message_id"]
    if message.campaign is None:
        contact.origin, contact.tags = PLAIN_ORIGIN, PLAIN_TAG
        versioned += ["origin", "tags"]
    else:
        contact.tags, contact.assigned_to, contact.origin = message.campaign
        if contact.origin:
            versioned.append("origin")
    version = message.stamp.version
    contact.last_metadata = encode_metadata(
        message.stamp.metadata, version, dict.fromkeys(versioned, version)
    )


def _update(index: ContactIndex, contact: Contact, log: LogRow | None, message: Incoming) -> None:
    index.repair(contact, message.contact_chat_id)
    versions = contact.column_versions
    before = dict(versions)
    if log is None or _precedes(message, log.version):
        _first_message(contact, versions, message)
    campaign = message.campaign
    if campaign is not None:
        _campaign(contact, versions, message, campaign)
    elif _takes_origin(contact, versions, log, message):
        _plain(contact, versions, message)
    if campaign is not None or versions != before:
        assigned_to = campaign.assigned_to if campaign else ""
        contact.apply(message.stamp, {"assigned_to": assigned_to} if assigned_to else {}, versions)


def _first_message(contact: Contact, versions: dict[str, str], message: Incoming) -> None:
    if not contact.first_message_id:
        # A zero timestamp leaves the column as it is.
        contact.first_message_timestamp = message.sent_at or contact.first_message_timestamp
    elif _precedes(message, parse(versions.get("first_message_id"))):
        contact.first_message_timestamp = message.sent_at
    else:
        return
    contact.first_message_id = message.message_id
    versions["first_message_id"] = _version_text(message)


def _takes_origin(contact: Contact, versions: dict[str, str], log: LogRow | None, message: Incoming) -> bool:
    if contact.origin:
        return _precedes(message, parse(versions.get("origin")))
    if message.campaign is not None or log is None:
        return True
    # Known as onboarded: nothing more to do, unless no message of ours had an origin to give.
    return log.version is not None and "origin" not in versions


def _plain(contact: Contact, versions: dict[str, str], message: Incoming) -> None:
    contact.origin = PLAIN_ORIGIN
    versions["origin"] = _version_text(message)
    tags = with_plain_tag(contact.tags)
    if tags != contact.tags or "tags" in versions:
        versions["tags"] = versions["origin"]
    contact.tags = tags


def with_plain_tag(tags: str | None) -> str:
    """`tags` with the tag of a plain message behind them, unless it is among them."""
    present = _split(tags)
    if tags and PLAIN_TAG in present:
        return tags
    return f"{tags},{PLAIN_TAG}" if present else PLAIN_TAG


def _campaign(
    contact: Contact, versions: dict[str, str], message: Incoming, campaign: CampaignAttribution
) -> None:
    tags = _split(contact.tags)
    added = _split(campaign.tags)
    if campaign.origin and _takes_origin(contact, versions, None, message):
        contact.origin = campaign.origin
        versions["origin"] = _version_text(message)
        if versions.pop("tags", None) is not None:
            tags = [tag for tag in tags if tag != PLAIN_TAG]
            contact.tags = ",".join(tags)
    if PLAIN_TAG in added:
        versions.pop("tags", None)
    if added:
        contact.tags = ",".join(dict.fromkeys([*tags, *added]))


def _split(tags: str | None) -> list[str]:
    return [tag for part in (tags or "").split(",") if (tag := part.strip())]
