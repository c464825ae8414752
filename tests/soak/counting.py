"""What is there after a run, in numbers: a lost row is one too few, a doubled one is one too many."""

from __future__ import annotations

from typing import Final

import asyncpg

from events.subjects import Tenant
from testkit.account import RENAMED
from tests.bench.environment import Environment
from tests.reconcile import default_settings

# Rows and different keys: one lost and one doubled row would go unseen in the number of rows alone.
_COUNTS: Final = {
    "messages": "SELECT count(*) FROM {schema}.messages",
    "different messages": "SELECT count(DISTINCT message_id) FROM {schema}.messages",
    "read messages": "SELECT count(*) FROM {schema}.messages WHERE status = 'read'",
    "chats": "SELECT count(*) FROM {schema}.chats",
    "unread messages": "SELECT coalesce(sum(unread_count), 0) FROM {schema}.chats",
    "contacts": "SELECT count(*) FROM {schema}.contacts",
    "different contacts": "SELECT count(DISTINCT (agent_id, phone_number)) FROM {schema}.contacts",
    "renamed contacts": "SELECT count(*) FROM {schema}.contacts WHERE push_name LIKE '% {renamed}'",
    "onboarded phones": "SELECT count(*) FROM {schema}.onboarding_log",
    "different onboarded phones": "SELECT count(DISTINCT (agent_id, phone_number)) FROM {schema}.onboarding_log",
    "exhausted events": "SELECT count(*) FROM {schema}.exhausted_events",
}
_PATIENCE: Final = 300.0


async def contacts(dsn: str, tenant: Tenant) -> int:
    """How many contacts there are."""
    return (await _ask(dsn, tenant, "contacts"))["contacts"]


async def counts(env: Environment, dsn: str, tenant: Tenant) -> dict[str, int]:
    """Everything that `tests.soak.traffic.Traffic.expected` names."""
    letters = await env.js.stream_info(default_settings().dlq_stream)
    return {**await _ask(dsn, tenant, *_COUNTS), "dead letters": letters.state.messages}


async def _ask(dsn: str, tenant: Tenant, *names: str) -> dict[str, int]:
    # A connection of its own each time: the server was away in between.
    connection = await asyncpg.connect(dsn)
    try:
        return {
            name: int(
                await connection.fetchval(
                    _COUNTS[name].format(schema=f'"{tenant.schema}"', renamed=RENAMED), timeout=_PATIENCE
                )
            )
            for name in names
        }
    finally:
        await connection.close()


def differences(expected: dict[str, int], found: dict[str, int]) -> list[str]:
    """What is not as it must be; empty when nothing was lost and nothing doubled."""
    return [
        f"{name}: {found[name]:,} instead of {count:,}"
        for name, count in expected.items()
        if found[name] != count
    ]
