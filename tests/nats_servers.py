"""NATS servers whose configuration changes while they run, and users with rights."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from testkit.servers import NatsServer, free_port

# What the worker needs (docs/security.md), by the short names that tests use.
RIGHTS = {
    "api": "$JS.API.>",
    "ack": "$JS.ACK.>",
    "dlq": "v1.dlq.*",
}


class ChangingNats(NatsServer):
    """A server that takes a new configuration without a restart."""

    def reload(self, settings: str) -> None:
        """Have the server read these further lines; it does so a moment later."""
        self._settings = settings
        self._configure()
        os.kill(self.pid, signal.SIGHUP)

    def reconfigure(self, settings: str) -> None:
        """Start again with these further lines."""
        self.stop()
        self._settings = settings
        self.start()

    def at(self, user: str) -> str:
        """Where this user (`name:password`) connects."""
        return f"nats://{user}@127.0.0.1:{self.port}"


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
