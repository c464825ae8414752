"""Configurations of NATS: users with limited rights, JetStream domains, and how a running server takes another one."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from testkit.servers import NatsServer, free_port

_PATIENCE = 30.0

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


class ConfigurableNats(NatsServer):
    """A server whose further lines of configuration change."""

    def reload(self, settings: str) -> None:
        """Change them while it runs. It takes them a moment later."""
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


def reload(server: ConfigurableNats, settings: str) -> None:
    """Change the further lines of a server's configuration while it runs; returns when it has taken them."""
    before = _loaded(server)
    server.reload(settings)
    deadline = time.monotonic() + _PATIENCE
    while _loaded(server) == before:
        assert time.monotonic() < deadline, "the server does not take its new configuration"
        time.sleep(0.01)


def _loaded(server: NatsServer) -> str:
    """When it took its configuration."""
    url = f"http://127.0.0.1:{server.monitoring_port}/varz"
    with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
        return str(json.load(answer)["config_load_time"])
