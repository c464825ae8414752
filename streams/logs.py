"""Logs: JSON lines on stdout, from our code and from the libraries alike.

`configure` sets up the standard library's logging; `Worker` keeps Faust from setting it up once more, and the
`worker` command from printing its banner to stdout.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, Final, TextIO

import faust
import faust.cli.worker
import mode
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from events.redaction import redacted, redacted_value

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}
_NAMES: Final = {"warning": "warn", "critical": "error", "exception": "error"}
_OURS: Final = ("streams", "agents", "tables")
# Their texts repeat row values (`DETAIL: Key (...)=(...)`), payloads or connection URLs.
_WITH_DATA: Final = ("asyncpg.", "msgspec.", "json.", "urllib.")


def configure(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Log from `level` on (debug, info, warn, error; anything else is info); may be called again.

    Libraries are heard from `warn` on, with `debug` from `info` on: their debug lines could show payloads.
    """
    ours = _LEVELS.get(level, logging.INFO)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
    ]
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _arranged, _as_json],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if ours == logging.DEBUG else max(ours, logging.WARNING))
    for name in _OURS:
        logging.getLogger(name).setLevel(ours)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _arranged(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The documented keys first, credentials removed."""
    level = str(event.pop("level", "info"))
    line: dict[str, Any] = {
        "level": _NAMES.get(level, level),
        "ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "logger": event.pop("logger", None),
        "msg": _clean(str(event.pop("event", ""))),
    }
    error = _exception(event.pop("exc_info", None))
    event.pop("stack_info", None)
    for key, value in event.items():
        value = redacted_value(key, value)
        line.setdefault(key, _clean(value) if isinstance(value, str) else value)
    if error is not None:
        line["stacktrace"] = _clean("".join(_traceback(error, set())))
    return line


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    # An object of any other type is only named: its text could hold a payload.
    return json.dumps(event, default=lambda value: f"<{type(value).__name__}>", skipkeys=True)


def _clean(text: str) -> str:
    if not text.isascii():
        text = text.encode(errors="replace").decode()
    return redacted(text)


def _exception(given: object) -> BaseException | None:
    if isinstance(given, BaseException):
        return given
    if isinstance(given, tuple):
        return given[1] if isinstance(given[1], BaseException) else None
    return sys.exception() if given else None


def _traceback(error: BaseException, seen: set[int]) -> Iterator[str]:
    """A traceback, causes first, without the texts that may hold data."""
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _traceback(before, seen)
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        if id(part) not in seen:
            yield from _traceback(part, seen)
    yield from traceback.format_tb(error.__traceback__)
    kind = type(error)
    name = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    yield f"{name}\n" if name.startswith(_WITH_DATA) else f"{name}: {error}\n"


class Worker(faust.Worker):
    """Faust's worker, with logging left as `configure` made it: `--loglevel` and `--logfile` do nothing."""

    def __init__(self, app: faust.App, *services: Any, **options: Any) -> None:
        super().__init__(app, *services, **{**options, "override_logging": False, "quiet": True})
        self.spinner = None


class worker(faust.cli.worker.worker):  # noqa: N801 - Faust makes the command's name of the class's
    """Start worker instance for given app."""

    def on_worker_created(self, worker: mode.Worker) -> None:
        """Print no banner: stdout is for JSON lines."""
