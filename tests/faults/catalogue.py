"""All classes of faults by name."""

from __future__ import annotations

from typing import Final

from tests.faults.classes import FAULTS as SINGLE_FAULTS
from tests.faults.failover_classes import FAILOVER_FAULTS
from tests.faults.fault import Fault
from tests.faults.node_classes import NODE_FAULTS

FAULTS: Final[dict[str, Fault]] = {**SINGLE_FAULTS, **NODE_FAULTS, **FAILOVER_FAULTS}


def of_kind(kind: str) -> list[str]:
    """The names of the classes of a kind: `single`, `cluster` or `all`."""
    return [name for name, fault in FAULTS.items() if kind in ("all", fault.kind)]
