"""Configurations of NATS: users with limited rights, and JetStream domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from testkit.servers import free_port

# What the worker needs (docs/security.md), by the short names that tests use.
RIGHTS = {
    "api": "$JS.API.>",
    "ack": "$JS.ACK.>",
    "dlq": "v1.dlq.*",
}


def domain_pair(folder: Path) -> tuple[str, str]:
    """Lines for a hub with the JetStream domain `hub`, and for a leaf node of it with the domain `leaf`.

    Their JetStream data is in `folder`: the block replaces the server's own.
    """
    link = free_port()
    domain = 'jetstream {{ store_dir: "{}", domain: {} }}'
    hub = domain.format(folder / "hub", "hub") + f'\nleafnodes {{ listen: "127.0.0.1:{link}" }}'
    remote = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{link}" }} ], reconnect: 1 }}'
    return hub, domain.format(folder / "leaf", "leaf") + f"\n{remote}"


def rights(*, denied: Sequence[str] = (), inbox: str = "_INBOX.>", without: Sequence[str] = ()) -> str:
    """Users `worker:w`, with the worker's rights but those of `without` and the subjects `denied`, and `tests:t`."""
    allowed = ", ".join(f'"{subject}"' for name, subject in RIGHTS.items() if name not in without)
    refused = ", ".join(f'"{subject}"' for subject in denied)
    subscribe = f'"{inbox}", "$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>"'
    return f"""authorization {{ users: [
        {{ user: "worker", password: "w", permissions: {{
            publish: {{ allow: [ {allowed} ], deny: [ {refused} ] }}, subscribe: [ {subscribe} ] }} }},
        {{ user: "tests", password: "t" }} ] }}"""
