"""Checks that constraints.txt pins every dependency of pyproject.toml, direct or not, within its range.

Works offline: indirect dependencies are read from the metadata of the installed distributions.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]


def declared(project: str) -> list[Requirement]:
    """The dependencies in the text of a pyproject.toml, optional ones included."""
    table = tomllib.loads(project)["project"]
    groups = [table["dependencies"], *table["optional-dependencies"].values()]
    return [Requirement(line) for group in groups for line in group]


def pinned(constraints: str) -> dict[str, str]:
    """Name and version of each pin for this platform."""
    lines = (line.strip() for line in constraints.splitlines())
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def problems(requirements: list[Requirement], pins: dict[str, str]) -> Iterator[str]:
    """One line for each dependency, direct or not, that is missing, outside its range or not the one installed."""
    pending = list(requirements)
    seen: set[str] = set()
    while pending:
        requirement = pending.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        if name not in pins:
            yield f"{requirement} is missing"
        elif not requirement.specifier.contains(pins[name], prereleases=True):
            yield f"{name}=={pins[name]} is outside {requirement}"
        elif (installed := _installed(name)) != pins[name]:
            yield f"{name}=={pins[name]} is not what is installed: {installed}"
        else:
            pending += _needed_by(requirement)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _needed_by(requirement: Requirement) -> list[Requirement]:
    """Requirements of an installed distribution on this platform, with the requested extras."""
    extras = requirement.extras or {""}
    needed = [Requirement(line) for line in metadata.requires(requirement.name) or []]
    return [
        each
        for each in needed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def main() -> None:
    """Print the problems, if any, and exit with 1."""
    requirements = declared((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = pinned((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    found = sorted(set(problems(requirements, pins)))
    if found:
        sys.exit("\n".join(["constraints.txt does not fit (make constraints, or make clean):", *found]))
    print(f"constraints.txt: {len(pins)} versions, in step with pyproject.toml")


if __name__ == "__main__":
    main()
