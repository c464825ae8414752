"""What stands in for the app where settings are missing or wrong."""

from __future__ import annotations

import sys
from typing import Final

import click
import faust

_NEED_NO_SETTINGS: Final = frozenset({"version"})


class UnconfiguredApp(faust.App):
    """Lets commands be listed and described, and `version` run; every other command ends with code 1."""

    def __init__(self, problem: str) -> None:
        """`problem` is what such a command says on stderr."""
        super().__init__("unconfigured", broker="kafka://none.invalid")
        self._problem = problem

    def worker_init(self) -> None:
        """Called when Faust looks for commands, and again by a command that runs. Raises `SystemExit`."""
        context = click.get_current_context(silent=True)
        # The group of all commands has no parent; outside of a context Faust imports the app for the names.
        if context and context.parent and context.info_name not in _NEED_NO_SETTINGS:
            sys.stderr.write(f"{self._problem}\n")
            raise SystemExit(1)
        super().worker_init()
