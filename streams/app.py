"""The module that `faust -A streams.app` loads: `app`, made from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from streams import logs
from streams.cli.commands import CommandApp
from streams.cli.unconfigured import UnconfiguredApp
from streams.config.settings import Settings, SettingsError
from streams.container import Container
from streams.worker.application import use_fast_loop
from streams.worker.shutdown import hear_blocked_stop


def build(environ: Mapping[str, str]) -> CommandApp:
    """The app for these variables. Raises `SettingsError`."""
    settings = Settings.from_env(environ)
    logs.configure(settings.log_level)
    use_fast_loop()
    return Container(settings).app


def __getattr__(name: str) -> Any:
    """`app`, made when Faust asks for it: importing this module must not need any settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hear_blocked_stop()
    try:
        globals()["app"] = app = build(os.environ)
    except SettingsError as error:
        return UnconfiguredApp(str(error))
    return app
