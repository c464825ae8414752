"""The page for people, `/`, and its figures, `/status.json`: how the worker is, without Grafana.

Read-only, and of the worker itself: no payload and no setting is on it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import faust
from aiohttp import web
from faust.web.views import View
from prometheus_client import Counter, Gauge

from streams.monitoring.collectors import Collectors
from streams.monitoring.http import reasons_of
from streams.monitoring.metrics_history import COUNTS, Samples, percentile, rates
from streams.monitoring.watched_source import WatchedSource

# However many look at the page, PostgreSQL is asked at most this often, seconds.
FRESH: Final = 1.0
_FOLDER: Final = Path(__file__).parent / "static"
_STOPPING: Final = "stopping"


class Status:
    """Puts the figures together; made anew at most once in `FRESH` seconds."""

    def __init__(
        self,
        *,
        version: str,
        companies: Sequence[str],
        sources: Sequence[WatchedSource],
        agents: Callable[[], Mapping[str, bool]],
        readiness: Callable[[], Awaitable[Mapping[str, str]]],
        collectors: Collectors,
        samples: Samples,
    ) -> None:
        self._version = version
        self._companies = companies
        self._sources = sources
        self._agents = agents
        self._readiness = readiness
        self._on = collectors
        self._samples = samples
        self._started = time.monotonic()
        self._making = asyncio.Lock()
        self._made = (-FRESH, b"")

    async def body(self) -> bytes:
        """The figures as JSON."""
        async with self._making:
            if time.monotonic() - self._made[0] >= FRESH:
                text = json.dumps(await self._figures(), separators=(",", ":"))
                self._made = time.monotonic(), text.encode()
            return self._made[1]

    async def _figures(self) -> dict[str, Any]:
        reasons = await reasons_of(self._readiness)
        now = time.monotonic()
        return {
            "version": self._version,
            "time": round(time.time(), 3),
            "uptime": round(now - self._started, 1),
            "state": _state(reasons),
            "reasons": dict(reasons),
            "connections": {
                "nats": {"problem": reasons.get("nats"), "reconnects": _total(self._on.reconnects)},
                "postgres": {"problem": reasons.get("postgres")},
            },
            "agents": [{"name": name, "running": runs} for name, runs in self._agents().items()],
            "sources": self._source_figures(reasons, now),
            "dead_letters": self._dead_letters(),
            "events": self._events(),
            "history": self._history(now),
        }

    def _source_figures(self, reasons: Mapping[str, str], now: float) -> list[dict[str, Any]]:
        pending, unacknowledged = _shown(self._on.pending), _shown(self._on.unacknowledged)
        found = []
        for source in self._sources:
            key = (source.tenant.company, source.role)
            pulled = self._samples.pulled(*key)
            found.append(
                {
                    "company": source.tenant.company,
                    "consumer": source.role,
                    "pending": pending.get(key),
                    "unacknowledged": unacknowledged.get(key),
                    "held": source.held,
                    "batches": pulled and round(pulled.batches, 3),
                    "messages": pulled and round(pulled.messages, 3),
                    "fetched": round(now - source.last_fetch, 1) if source.alive else None,
                    "problem": reasons.get(source.name),
                }
            )
        return found

    def _dead_letters(self) -> list[dict[str, Any]]:
        waiting, ages = _shown(self._on.dlq_messages), _shown(self._on.dlq_age)
        exhausted = _shown(self._on.exhausted)
        return [
            {
                "company": company,
                "waiting": waiting.get((company,)),
                "oldest": ages.get((company,)),
                "exhausted": exhausted.get((company,)),
            }
            for company in self._companies
        ]

    def _events(self) -> dict[str, Any]:
        """Totals since the start; rates and processing times of the last minute."""
        latest, window = self._samples.latest, self._samples.window()
        now = rates(*window) if window else {}
        figures: dict[str, Any] = {
            name: {"total": latest and getattr(latest, name), "rate": _rounded(now.get(name))}
            for name in COUNTS
        }
        figures["p50"] = _rounded(window and percentile(0.5, *window))
        figures["p95"] = _rounded(window and percentile(0.95, *window))
        return figures

    def _history(self, now: float) -> dict[str, list[float | None]]:
        """Columns of equal length, oldest first; `ago` in seconds."""
        names = ("ago", *COUNTS, "p50", "p95")
        columns: dict[str, list[float | None]] = {name: [] for name in names}
        for older, newer in self._samples.steps():
            columns["ago"].append(round(now - newer.at, 1))
            for name, rate in rates(older, newer).items():
                columns[name].append(_rounded(rate))
            columns["p50"].append(_rounded(percentile(0.5, older, newer)))
            columns["p95"].append(_rounded(percentile(0.95, older, newer)))
        return columns


def install(
    app: faust.App,
    *,
    version: str,
    companies: Sequence[str],
    sources: Sequence[WatchedSource],
    agents: Callable[[], Mapping[str, bool]],
    readiness: Callable[[], Awaitable[Mapping[str, str]]],
    collectors: Collectors,
) -> Samples:
    """Put the page on the app's web server; the samples for its charts, which have to be taken now and then."""
    samples = Samples(collectors, companies)
    status = Status(
        version=version,
        companies=companies,
        sources=sources,
        agents=agents,
        readiness=readiness,
        collectors=collectors,
        samples=samples,
    )
    register(app, status)
    return samples


def register(app: faust.App, status: Status) -> None:
    """Put the page and its figures on the app's web server; both answer GET and HEAD only."""
    document, policy = _document()

    async def page(_: View, __: Any) -> Any:
        return web.Response(
            body=document,
            content_type="text/html",
            charset="utf-8",
            headers={**_HEADERS, "Content-Security-Policy": policy},
        )

    async def figures(_: View, __: Any) -> Any:
        return web.Response(body=await status.body(), content_type="application/json", headers=_HEADERS)

    app.page("/", name="page")(page)
    app.page("/status.json", name="status")(figures)


_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def _document() -> tuple[bytes, str]:
    """The page in one piece, and the policy that lets a browser run just its own script and style."""
    html, style, script = (
        (_FOLDER / f"status.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    document = html.replace("{{style}}", style).replace("{{script}}", script)
    policy = {
        "default-src": "'none'",
        "style-src": _hash(style),
        "script-src": _hash(script),
        "connect-src": "'self'",
        # The icon, which the script draws.
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return document.encode(), "; ".join(f"{name} {value}" for name, value in policy.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _state(reasons: Mapping[str, str]) -> str:
    if not reasons:
        return "ready"
    if "worker" in reasons:
        return "stopping" if reasons["worker"] == _STOPPING else "starting"
    return "not_ready"


def _shown(gauge: Gauge) -> dict[tuple[str, ...], float]:
    """Each series by the values of its labels; one that is not known is not there."""
    return {tuple(sample.labels.values()): sample.value for sample in _samples(gauge)}


def _total(counter: Counter) -> float:
    return float(sum(sample.value for sample in _samples(counter)))


def _samples(collector: Gauge | Counter) -> Iterator[Any]:
    return (sample for metric in collector.collect() for sample in metric.samples)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
