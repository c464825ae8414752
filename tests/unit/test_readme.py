"""The pages tell the truth: settings, metrics, links and commands in them exist, and none is forgotten."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from pathlib import Path
from typing import Final

import pytest

from streams.cli import commands
from streams.config.settings import variables
from streams.monitoring.label_values import ONBOARDING_STATUSES, OPERATIONS, PARTS
from streams.monitoring.metrics import Metrics
from streams.version import VERSION
from tests.unit.documented_metrics import ACTIONS, ERROR_TYPES

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
PAGES: Final = (
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
IDS: Final = [page.name for page in PAGES]

# Names that begin like a metric and are none.
NOT_METRICS: Final = {
    "daisi_pub",
    "onboarding_queue",  # a module of ours
    "daisi_dlq_stream",
    "dlq_stream",
    "dlq_payload",
    "dlq_published_ack_success",
    "onboarding_log",
}
# Read by others, or only by the demo and the Makefile.
OTHER_VARIABLES: Final = {"PROMETHEUS_MULTIPROC_DIR", "EVENTS", "ARGS", "WORKERS", "PYTHON"}
_VARIABLE: Final = (
    r"\b(?:NATS|POSTGRES|DATABASE|COMPANY|SERVER|METRICS|WORKERPOOLS|LOG|POSTSCAN|PROMETHEUS)_[A-Z_]+\b"
)


@pytest.fixture(scope="module")
def families() -> dict[str, str]:
    """Name and type of everything on a page of metrics."""
    page = b"".join(asyncio.run(Metrics(["KopiNusa01"], version="1").page())).decode()
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))


@pytest.fixture(scope="module")
def samples(families: dict[str, str]) -> set[str]:
    """The names that a query can use."""
    parts = ("bucket", "count", "sum")
    histograms = {name for name, kind in families.items() if kind == "histogram"}
    return set(families) | {f"{name}_{part}" for name in histograms for part in parts}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_variable_on_a_page_is_read(page: Path) -> None:
    known = {name for variable in variables() for name in (variable.name, *variable.aliases)}
    named = set(re.findall(_VARIABLE, page.read_text()))
    # `NATS_*_CONSUMER` and `NATS_HISTORICAL_` stand for several.
    strange = {name for name in named - known - OTHER_VARIABLES if not name.endswith("_")}

    assert not strange


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_metric_on_a_page_exists(page: Path, samples: set[str]) -> None:
    named = set(
        re.findall(
            r"(?<![\w.])(?:message_event_service|dlq|onboarding|daisi)_[a-z_]+\b(?!\w)", page.read_text()
        )
    )
    schemas = {name for name in named if re.fullmatch(r"daisi_(kopinusa|loadtest)\w*", name)}

    assert not {name for name in named - NOT_METRICS - schemas - samples if not name.endswith("_")}


def test_every_metric_of_ours_is_explained(families: dict[str, str]) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    ours = {name for name in families if not name.startswith(("process_", "python_"))}

    assert not {name for name in ours if f"`{name}`" not in text}


def test_every_value_of_a_label_is_explained() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    values = (
        ACTIONS
        | ERROR_TYPES
        | {*ONBOARDING_STATUSES, *PARTS}
        | {part for pair in OPERATIONS for part in pair}
    )

    assert not {value for value in values if f"`{value}`" not in text}


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in _anchors(file)):
            broken.append(target)

    assert not broken


def _code(text: str) -> str:
    """What is code on a page: blocks and spans, each on lines of its own."""
    fenced = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced.findall(text), *re.findall(r"`([^`\n]+)`", fenced.sub("", text))])


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_on_a_page_exists(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"^make ([a-z][a-z-]*)", _code(text), re.MULTILINE)) <= targets
    for command in re.findall(r"faust -A streams\.app ([a-z]+)", text):
        assert command == "worker" or hasattr(commands, command), command
    for option in re.findall(r"streams\.app topology (--[a-z-]+)", text):
        assert option in {"--apply", "--drop-old"}, option
    for module in re.findall(r"python3? -m ([\w.]+)", text):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_program_on_a_page_compiles(page: Path) -> None:
    for program in re.findall(r"<<'EOF'\n(.*?)\nEOF\n", page.read_text(), re.DOTALL):
        compile(program, page.name, "exec")


def test_first_screen_shows_the_demo_and_the_tests() -> None:
    first_screen = "\n".join(README.read_text().splitlines()[:40])

    assert "make demo EVENTS=5000" in first_screen
    assert "make test" in first_screen
    assert "pip install -r constraints.txt" in first_screen


def test_changelog_names_the_version() -> None:
    assert f"## [{VERSION}]" in (ROOT / "CHANGELOG.md").read_text()
