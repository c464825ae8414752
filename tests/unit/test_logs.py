"""Log lines: JSON with the documented keys (RUN-16), whoever wrote them, and without anything secret."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import AsyncIterable, Callable, Iterator
from typing import Any

import asyncpg
import faust
import pytest
import structlog

from streams import logs
from streams.worker.application import EventsApp
from streams.worker.channel import DirectChannel
from streams.worker.shutdown import Shutdown

Lines = Callable[[], list[dict[str, Any]]]
Configure = Callable[[str], Lines]


@pytest.fixture
def configure() -> Iterator[Configure]:
    """Configure logging into memory; what was set before is back afterwards."""
    root = logging.getLogger()
    names = ("streams", "agents", "tables")
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in names}
    stream = io.StringIO()

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    def start(level: str) -> Lines:
        logs.configure(level, stream=stream)
        return lines

    yield start
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, before in levels.items():
        logging.getLogger(name).setLevel(before)
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.mark.rule("RUN-16")
def test_line_has_the_documented_keys_in_front(configure: Configure) -> None:
    lines = configure("info")
    extra = {"company_id": "KopiNusa", "stream_sequence": 7}
    logging.getLogger("streams.source").warning("gone %s", "for now", extra=extra)
    (line,) = lines()
    assert list(line) == ["level", "ts", "logger", "msg", "company_id", "stream_sequence"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.pop("ts"))
    assert line == {"level": "warn", "logger": "streams.source", "msg": "gone for now", **extra}


def test_structlog_and_the_standard_library_look_the_same(configure: Configure) -> None:
    lines = configure("info")
    structlog.contextvars.bind_contextvars(request_id="r1")
    try:
        structlog.get_logger("agents.x").info("stored", company_id="KopiNusa")
        logging.getLogger("agents.x").info("stored", extra={"company_id": "KopiNusa"})
    finally:
        structlog.contextvars.clear_contextvars()
    first, second = ({key: line[key] for key in line if key != "ts"} for line in lines())
    assert first == second
    assert first["request_id"] == "r1"


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warn", "error"]),
        ("info", ["info", "warn", "error"]),
        ("warn", ["warn", "error"]),
        ("error", ["error"]),
        ("nonsense", ["info", "warn", "error"]),
    ],
)
def test_level_is_obeyed(configure: Configure, level: str, expected: list[str]) -> None:
    lines = configure(level)
    logger = logging.getLogger("tables.x")
    for write in (logger.debug, logger.info, logger.warning, logger.error):
        write("x")
    assert [line["level"] for line in lines()] == expected


@pytest.mark.parametrize("name", ["faust", "mode", "nats.aio.client", "asyncpg", "aiohttp.server"])
def test_libraries_are_heard_from_warnings_on(configure: Configure, name: str) -> None:
    lines = configure("info")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).critical("trouble")
    assert [(line["logger"], line["level"], line["msg"]) for line in lines()] == [(name, "error", "trouble")]


def test_debug_lines_of_libraries_never_show(configure: Configure) -> None:
    """They may hold whole messages."""
    lines = configure("debug")
    logging.getLogger("nats.aio.client").debug("payload")
    assert lines() == []


def test_configuring_again_does_not_double_the_lines(configure: Configure) -> None:
    configure("info")
    lines = configure("info")
    logging.getLogger("streams.x").info("once")
    assert len(lines()) == 1


def test_text_that_cannot_be_encoded_is_logged_all_the_same(configure: Configure) -> None:
    lines = configure("info")
    logging.getLogger("streams.x").info(
        "half \ud800 a pair", extra={"subject": "\udfff", "nested": ["\ud800"]}
    )
    structlog.get_logger("streams.x").info("café", subject="\udfff")
    assert [line["msg"] for line in lines()] == ["half ? a pair", "café"]
    assert lines()[0]["subject"] == "?"


@pytest.mark.rule("RUN-18")
@pytest.mark.parametrize(
    "text", ["nats://user:hunter2@nats:4222", "postgres://user:p@hunter2@db/wa?x=1", "tls://hunter2@n"]
)
def test_credentials_are_blotted_out(configure: Configure, text: str) -> None:
    lines = configure("info")
    logger = logging.getLogger("streams.x")
    logger.info("cannot reach %s now", text, extra={"url": text})
    try:
        raise OSError(f"cannot reach {text}")
    except OSError:
        logger.exception("trouble")
    assert "hunter2" not in json.dumps(lines())
    assert "://***@" in lines()[0]["msg"]


def test_stacktrace_tells_causes_but_no_row_values(configure: Configure) -> None:
    lines = configure("info")
    try:
        try:
            error = asyncpg.UniqueViolationError("duplicate key: hunter2")
            error.detail = "Key (phone)=(hunter2) already exists."
            raise error
        except asyncpg.PostgresError as cause:
            raise ValueError("could not store") from cause
    except ValueError:
        logging.getLogger("streams.x").exception("trouble")
    (line,) = lines()
    assert line["msg"] == "trouble"
    assert "ValueError: could not store" in line["stacktrace"]
    assert "asyncpg.exceptions.UniqueViolationError\n" in line["stacktrace"]
    assert __name__.rpartition(".")[2] in line["stacktrace"]
    assert "hunter2" not in json.dumps(line)


def test_every_member_of_an_exception_group_is_told(configure: Configure) -> None:
    lines = configure("info")
    try:
        raise ExceptionGroup("several", [ValueError("first"), KeyError("second")])
    except ExceptionGroup:
        structlog.get_logger("streams.x").exception("trouble")
    assert "ValueError: first" in lines()[0]["stacktrace"]
    assert "KeyError: 'second'" in lines()[0]["stacktrace"]


def test_objects_are_named_but_not_shown(configure: Configure) -> None:
    lines = configure("info")
    logging.getLogger("streams.x").info("got", extra={"data": b"payload", "thing": {1: object()}})
    assert lines()[0]["data"] == "<bytes>"
    assert lines()[0]["thing"] == {"1": "<object>"}


def test_warnings_are_lines_too(configure: Configure) -> None:
    lines = configure("info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert lines()[0]["logger"] == "py.warnings"


async def test_an_agent_formats_no_line_that_nobody_sees() -> None:
    """Faust writes one for each batch."""
    app = EventsApp("agents", shutdown=Shutdown(1.0), connections=[])

    async def body(stream: AsyncIterable[int]) -> None:
        """Never run."""

    agent: Any = app.agent(DirectChannel(app), name="routing")(body)
    assert agent._format_log(logging.DEBUG, "%r yielded: %r") == "%r yielded: %r"
    assert "body" in agent._format_log(logging.ERROR, "gone")
    assert agent.logger is faust.Agent.logger
