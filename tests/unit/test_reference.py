"""The tables of docs/ that are made of the code: complete, and noticed when they are out of step."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from streams.config.settings import variables
from streams.monitoring.collectors import Collectors
from streams.monitoring.metrics import Metrics
from tools import reference


def cells(table: str) -> list[list[str]]:
    """The rows without the head."""
    return [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines()[2:]]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pages for the tool to work on."""
    for name in reference.PAGES:
        (tmp_path / name).write_text((reference.DOCS / name).read_text())
    monkeypatch.setattr(reference, "DOCS", tmp_path)
    return tmp_path


def test_pages_are_in_step_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.keep_in_step(reference.pages(), []) == 0
    assert "in step" in capsys.readouterr().out


def test_every_table_is_on_a_page_once() -> None:
    text = "".join((reference.DOCS / name).read_text() for name in reference.PAGES)

    assert sorted(re.findall("<!-- table: (.+) -->", text)) == sorted(reference.TABLES)
    assert text.count("<!-- end of table -->") == len(reference.TABLES)


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_that_is_out_of_step_is_named_and_written(
    docs: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = docs / name
    right = page.read_text()
    page.write_text(right.replace("` | ", "`, once | ", 1))

    assert reference.keep_in_step(reference.pages(), []) == 1
    assert f"out of step with the code: {name};" in capsys.readouterr().err
    assert page.read_text() != right

    assert reference.keep_in_step(reference.pages(), ["--write"]) == 0
    assert page.read_text() == right


def test_a_table_that_is_not_known_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        reference.renewed("<!-- table: nothing -->\n<!-- end of table -->\n")


def test_settings_table_is_what_the_worker_reads() -> None:
    rows = cells(reference.settings())

    assert [re.findall("`([A-Z_]+)`", name) for name, *_ in rows] == [
        [each.name, *each.aliases] for each in variables()
    ]
    assert [meaning for _, meaning, _, _ in rows] == [each.meaning for each in variables()]
    defaults = {names[1:].partition("`")[0]: default for names, _, _, default in rows}
    assert defaults["POSTGRES_DSN"] == "must be set"
    assert defaults["NATS_CREDS"] == "none"
    assert defaults["SERVER_BIND"] == "`0.0.0.0`, `::`"
    assert defaults["NATS_REALTIME_NAKBASEDELAY"] == "`1s`"


def test_settings_table_gives_unit_and_bounds_of_each() -> None:
    values = {names[1:].partition("`")[0]: value for names, _, value, _ in cells(reference.settings())}

    assert {value.partition(",")[0] for value in values.values()} == {
        "URL", "URLs", "boolean", "count", "days", "duration", "file", "list", "minutes", "port", "text"
    }  # fmt: skip
    assert values["NATS_REALTIME_BATCHSIZE"] == "count, 1 to 5000"
    assert values["NATS_REALTIME_ACKWAIT"] == "duration, at least 1s"
    assert values["NATS_DLQMAXACKPENDING"] == "count, at least 1, or -1"


def test_command_table_has_every_command_with_its_arguments() -> None:
    usages = [
        usage.strip("`").removeprefix("faust -A streams.app ")
        for usage, _ in cells(reference.command_table())
    ]

    assert sorted(usages) == [
        "companies [PATTERN]",
        "companies-forget NAME",
        "companies-provision NAME…",
        "exhausted",
        "exhausted-discard ID…",
        "exhausted-replay ID…",
        "exhausted-show ID",
        "migrate",
        "topology",
        "version",
        "worker",
    ]
    assert all(text.endswith(".") for _, text in cells(reference.command_table()))


def test_option_table_has_defaults_and_no_option_without_meaning() -> None:
    rows = {
        (command, option): (text, default)
        for command, option, text, default in cells(reference.option_table())
    }

    assert rows["`exhausted`", "`--limit INTEGER`"] == ("At most so many.", "`50`")
    assert rows["`topology`", "`--apply`"][1] == ""
    assert all(text for text, _ in rows.values())


def test_every_metric_is_declared_with_its_type_and_labels_and_is_in_one_table() -> None:
    declared = Collectors("1").declared
    page = b"".join(asyncio.run(Metrics(["KopiNusa01"], version="1").page())).decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    ours = {name: kind for name, kind in kinds.items() if not name.startswith(("process_", "python_"))}
    prefixes = ("message_event_service_event", "dlq_", "message_event_service_db_", "onboarding_", "daisi_")
    listed = [row for prefix in prefixes for row in cells(reference.metrics(prefix))]

    assert {each.name: each.kind for each in declared} == ours
    assert sorted(name for _, name, *_ in listed) == sorted(f"`{each.name}`" for each in declared)


def test_documented_metrics_are_numbered_as_in_the_monitoring_guide() -> None:
    numbers = {name.strip("`"): number for number, name, *_ in cells(reference.metrics(""))}

    assert numbers["message_event_service_events_received_total"] == "1"
    assert numbers["dlq_fetch_requests_total"] == "8"
    assert numbers["message_event_service_db_operation_duration_seconds"] == "18"
    assert numbers["onboarding_queue_length"] == "22"
    assert numbers["daisi_ready"] == ""
