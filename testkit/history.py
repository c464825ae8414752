"""History batches as a newly linked phone sends them: long, old, of chats that also live, partly broken."""

from __future__ import annotations

from typing import Final

from testkit.account import Account, Draft, encoded
from testkit.items import Item, Payload, good, refused

SMALLEST: Final = 20
LARGEST: Final = 100
BROKEN: Final = 0.03
_MONTHS: Final = 3 * 30 * 86_400


def batch(account: Account, field: str, *, broken_share: float) -> Draft:
    """A batch of `messages`, `chats` or `contacts`, with what is to become of each of its items."""
    event_type = f"v1.history.{field}"
    size = account.rng.randint(SMALLEST, LARGEST)
    payloads: list[object] = []
    items: list[Item] = []
    for _ in range(size):
        payload = _payload(account, field)
        if account.chance(broken_share):
            broken = _broken(account, field, payload)
            payloads.append(broken)
            items.append(refused(event_type, payload=broken))
        else:
            payloads.append(payload)
            items.append(good(event_type, payload))
    body: Payload = {field: payloads}
    if field == "messages" and account.chance(0.3):
        body |= {"is_last_batch": True, "agent_id": account.agent().id}
    return Draft(event_type, encoded(body), tuple(items))


def _payload(account: Account, field: str) -> Payload:
    # Its own past: the sort of item decides how the clock is read, so it is turned back only meanwhile.
    present = account.clock
    account.clock = present - account.rng.uniform(60, _MONTHS)
    try:
        chat = account.person()
        if field == "messages":
            return account.message(chat, incoming=account.chance(0.6))
        return account.chat(chat) if field == "chats" else account.contact(chat)
    finally:
        account.clock = present


def _broken(account: Account, field: str, payload: Payload) -> object:
    choices: tuple[object, ...] = (
        None,
        17,
        "text",
        {**payload, "company_id": f"{account.company}Other"},
        {**payload, "agent_id": ""},
        {**payload, "chat_id": 5},
        {name: value for name, value in payload.items() if name not in ("chat_id", "phone_number")},
    )
    return account.rng.choice(choices)
