"""Grafana's published types and units (npm packages @grafana/schema and @grafana/data), and a compiler for them.

They are fetched once, into a folder beside the sources, from wherever npm is set to fetch from.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from testkit.worker import ROOT
from tests.monitoring.composed import LOADTEST, services
from tests.programs import missing, required

CACHE: Final = ROOT / ".grafana"
_TYPES: Final = Path(__file__).parent / "grafana" / "dashboard.ts"
_TYPESCRIPT: Final = "5.8.3"
_QUIET: Final = ("--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", "--loglevel=error")
_OPTIONS: Final = ("--noEmit", "--strict", "--skipLibCheck", "--module", "esnext")
_RESOLUTION: Final = ("--moduleResolution", "bundler", "--target", "es2022", "--pretty", "false")
_ERROR: Final = re.compile(r"^(\S+)\.ts\((\d+),\d+\): error (TS\d+: .*)$")


def version() -> str:
    """That of the Grafana of the load test."""
    return str(services(LOADTEST)["grafana"]["image"]).partition(":")[2]


def fetched() -> Path:
    """The folder with all of it, fetched if it is not there yet; skips the test where that cannot be done."""
    folder = CACHE / version()
    if folder.exists():
        return folder
    npm = required("npm")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        made = Path(name) / version()
        made.mkdir()
        types = [f"@grafana/schema@{version()}", f"typescript@{_TYPESCRIPT}"]
        _run(made, npm, "install", *_QUIET, "--prefix", str(made), *types)
        # Not installed: of all that it needs, the list of units needs nothing.
        _run(made, npm, "pack", "--silent", f"@grafana/data@{version()}")
        # Another process may have been faster.
        if not folder.exists():
            made.rename(folder)
    return folder


def _run(folder: Path, *words: str) -> None:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        missing("Grafana's schema", f"npm could not fetch it: {done.stderr.strip()[-300:]}")


def problems(dashboards: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the compiler says against each of these dashboards, by name: the line of the JSON, and its text.

    What it says against the types themselves is under "dashboard".
    """
    node, folder = required("node"), fetched()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        shutil.copy(_TYPES, place)
        for stem, body in dashboards.items():
            text = json.dumps(body, indent=2, ensure_ascii=False)
            # On one line, so that lines are counted as in the JSON.
            before = "import type { Dashboard } from './dashboard'; export const it: Dashboard = "
            (place / f"{stem}.ts").write_text(before + text + ";\n", encoding="utf-8")
        compiler = folder / "node_modules" / "typescript" / "bin" / "tsc"
        words = [node, str(compiler), *_OPTIONS, *_RESOLUTION, *(f"{stem}.ts" for stem in dashboards)]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=180, check=False)
    found: dict[str, list[str]] = defaultdict(list)
    for line in done.stdout.splitlines():
        if match := _ERROR.match(line):
            found[match[1]].append(f"line {match[2]}: {match[3]}")
        elif found and line.startswith(" "):
            found[next(reversed(found))][-1] += f"\n{line}"
        else:
            found[""].append(line)
    assert bool(found) == bool(done.returncode), done.stdout + done.stderr
    return dict(found)


def units() -> set[str]:
    """The ids of Grafana's units."""
    with tarfile.open(fetched() / f"grafana-data-{version()}.tgz") as archive:
        listed = archive.extractfile("package/dist/esm/valueFormats/categories.mjs")
        assert listed
        return set(re.findall(r'\bid: "([^"]+)"', listed.read().decode("utf-8")))
