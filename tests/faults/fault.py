"""What a class of faults is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# What a fault does to a env of its kind under load; on return everything is healed.
Injection = Callable[[Any], Awaitable[None]]
Kind = Literal["single", "cluster"]
Servers = Literal["single", "nodes", "pair", "pooler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A class of faults.

    `servers`: what the run has: one NATS and one PostgreSQL, three NATS nodes, a primary with a standby, or a pooler
    before PostgreSQL. `runs` of a campaign. `cold`: from the worker's very first start on. `without`: kinds of events
    that are left out, `often`: that come more often (without those that are retried by design, no delivery may be
    repeated). `letters`: sound events may become dead letters (what they refer to went with its stream). `drained`: no
    dead letter may wait at the end. `replicas` of the streams at the start. `synchronous`: whether the standby is.
    `afterwards` is called when all is settled.
    """

    inject: Injection
    servers: Servers = "single"
    runs: int = 10
    rate: float = 80.0
    without: tuple[str, ...] = ()
    often: Mapping[str, int] = field(default_factory=dict)
    proxies: bool = False
    cold: bool = False
    letters: bool = False
    drained: bool = False
    replicas: int = 3
    synchronous: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    afterwards: Injection | None = None

    @property
    def kind(self) -> Kind:
        """Whether it needs more than one server of a sort."""
        return "single" if self.servers == "single" else "cluster"
