"""The compose files as parsed data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import yaml

from testkit.worker import ROOT

DOCKER: Final = ROOT / "docker"
DEV: Final = "docker-compose.yaml"
LOADTEST: Final = "docker-compose.loadtest.yaml"

Node = dict[str, Any]


def compose(name: str) -> Node:
    """A file, with its anchors merged."""
    content: Node = yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))
    return content


def services(name: str) -> dict[str, Node]:
    """Its services by name."""
    found: dict[str, Node] = compose(name)["services"]
    return found


def mounts(service: Node) -> Iterator[tuple[str, str, str]]:
    """(source, target, mode) of each volume."""
    for line in service.get("volumes", []):
        source, target, mode = [*line.split(":"), "rw"][:3]
        yield source, target, mode
