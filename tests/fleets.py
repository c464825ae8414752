"""The same tests and fault runs with a fleet: `FLEET=1` in the environment of pytest or of `tests.faults`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Final

# Prefix of the durables that deliver a company's events, where a fleet serves it.
FLEETS: Final[dict[str, str]] = {}


def as_fleet(companies: Sequence[str]) -> dict[str, str]:
    """What makes a worker serve these companies, and only them, through shared consumers; nothing without `FLEET`."""
    if not os.environ.get("FLEET") or tuple(companies) == ("*",):
        return {}
    prefix = f"wa_fleet_{hashlib.sha256(','.join(companies).encode()).hexdigest()[:16]}_"
    FLEETS.update(dict.fromkeys(companies, prefix))
    return {"COMPANY_ID": "*", "COMPANY_ALLOW": ",".join(companies), "NATS_FLEET_DURABLE": prefix}
