"""The status page and /status.json, served by Faust's own web server."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode

import faust
import pytest
from aiohttp import ClientSession
from aiohttp.test_utils import BaseTestServer, TestServer

from events.subjects import ConsumerType
from streams.monitoring import http, status_page, worker_status
from streams.monitoring.metrics import Metrics
from streams.monitoring.worker_status import WorkerStatus
from tests.sources import StubSource

ROLES: Final[tuple[ConsumerType, ...]] = ("realtime", "historical", "dlq")
THOUSAND: Final = tuple(f"Toko{number:03d}Nusantara" for number in range(1000))


class Worker:
    """What the page shows, and how often it asked whether the worker is ready."""

    def __init__(self, *companies: str) -> None:
        self.metrics = Metrics(companies, version="1.2.3")
        self.sources = [StubSource(each, role, in_flight=3) for each in companies for role in ROLES]
        self.reasons: dict[str, str] = {}
        self.agents = {"routing": True, "dlq": True, "onboarding": True}
        self.asked = 0
        self.status = WorkerStatus(
            version="1.2.3",
            metrics=self.metrics,
            sources=self.sources,
            agents=lambda: self.agents,
            readiness=self.readiness,
        )
        self.history = self.status.history

    async def readiness(self) -> Mapping[str, str]:
        self.asked += 1
        await asyncio.sleep(0.01)
        if "broken" in self.reasons:
            raise RuntimeError("hunter2")
        return self.reasons

    async def content(self) -> Any:
        return json.loads(await self.status.body())


class App(faust.App):
    """With the worker's own web server."""

    def _new_web(self) -> http.Web:
        return http.Web(self)


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[BaseTestServer]:
    app = App("tiny", autodiscover=False)
    http.register(app, metrics=worker.metrics, readiness=worker.readiness, version="1.2.3")
    status_page.register(app, worker.status)
    async with TestServer(await app.web.wsgi()) as server:
        yield server


@asynccontextmanager
async def served(worker: Worker) -> AsyncIterator[ClientSession]:
    async with serving(worker) as server, ClientSession(server.make_url("/")) as client:
        yield client


async def test_only_get_and_head_are_answered() -> None:
    async with served(Worker("KopiNusa01")) as client:
        for path, kind in (("/", "text/html"), ("/status.json", "application/json")):
            async with client.get(path) as answer:
                assert (answer.status, answer.content_type) == (200, kind)
                assert await answer.read()
            async with client.head(path) as answer:
                assert (answer.status, answer.content_type) == (200, kind)
                assert await answer.read() == b""
            for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "SEARCH"):
                async with client.request(method, path) as answer:
                    assert answer.status == 405, method


async def test_a_browser_may_run_just_what_the_page_brings() -> None:
    async with served(Worker("KopiNusa01")) as client, client.get("/") as answer:
        policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        text = await answer.text()
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        [inline] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert not re.search(r"\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|document\.write", text)


async def test_neither_page_nor_content_is_cached_or_guessed_at_or_framed() -> None:
    async with served(Worker("KopiNusa01")) as client:
        for path in ("/", "/status.json"):
            async with client.get(path) as answer:
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["X-Frame-Options"] == "DENY"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
                assert "Access-Control-Allow-Origin" not in answer.headers


async def test_the_page_fetches_nothing_from_elsewhere() -> None:
    async with served(Worker("KopiNusa01")) as client, client.get("/") as answer:
        addresses = set(re.findall(r"https?://[^\s'\"`<>]+", await answer.text()))
    # The names of a vocabulary, not addresses.
    assert addresses == {"http://www.w3.org/2000/svg"}


async def test_the_content_is_that_of_the_metrics() -> None:
    worker = Worker("KopiNusa01", "WarungSari")
    await worker.history.record()
    worker.metrics.received("KopiNusa01", "v1.messages.upsert", 12)
    worker.metrics.batch_received("KopiNusa01", "realtime", 12)
    for _ in range(10):
        worker.metrics.settled("KopiNusa01", "v1.messages.upsert", "ack_success", "none", 0.005, 0.001)
    for _ in range(2):
        worker.metrics.settled(
            "KopiNusa01", "v1.messages.upsert", "dlq_published_ack_success", "validation", 0.3, 0.1
        )
    worker.metrics.lag("KopiNusa01", "realtime", 40, 7)
    worker.metrics.dlq_state("KopiNusa01", 2, 31.5)
    worker.metrics.exhausted("KopiNusa01", 1, 0.0)
    worker.metrics.reconnected()
    await worker.history.record()
    found = await worker.content()

    assert (found["version"], found["state"], found["reasons"]) == ("1.2.3", "ready", {})
    totals = {name: found["events"][name]["total"] for name in found["events"] if name not in ("p50", "p95")}
    assert totals == {"received": 12, "processed": 10, "failed": 2, "dead_lettered": 2}
    assert 0 < found["events"]["p50"] <= 0.01
    assert 0.16 < found["events"]["p95"] <= 0.32
    assert found["connections"] == {
        "nats": {"problem": None, "reconnects": 1},
        "postgres": {"problem": None},
    }
    source = found["sources"][0]
    assert (source["company"], source["consumer"]) == ("KopiNusa01", "realtime")
    assert (source["pending"], source["unacknowledged"], source["held"]) == (40, 7, 3)
    assert source["messages"] == pytest.approx(12 * source["batches"], rel=0.01)
    assert found["dead_letters"][0] == {
        "company": "KopiNusa01",
        "waiting": 2,
        "oldest": 31.5,
        "exhausted": 1,
    }
    assert {len(column) for column in found["history"].values()} == {1}


async def test_what_is_not_known_is_no_number() -> None:
    worker = Worker("KopiNusa01")
    worker.sources[0].alive = False
    found = await worker.content()
    assert found["events"]["received"] == {"total": None, "rate": None}
    assert found["events"]["p95"] is None
    assert found["dead_letters"] == [
        {"company": "KopiNusa01", "waiting": None, "oldest": None, "exhausted": None}
    ]
    unknown = ("pending", "unacknowledged", "messages", "batches", "fetched")
    assert [found["sources"][0][name] for name in unknown] == [None] * 5


@pytest.mark.parametrize(
    ("reasons", "state"),
    [
        ({}, "ready"),
        ({"postgres": "no answer"}, "not_ready"),
        ({"worker": "connecting to PostgreSQL", "postgres": "no answer"}, "starting"),
        ({"worker": "stopping"}, "stopping"),
    ],
)
async def test_the_state_follows_readiness(reasons: dict[str, str], state: str) -> None:
    worker = Worker("KopiNusa01")
    worker.reasons = reasons
    found = await worker.content()
    assert (found["state"], found["reasons"]) == (state, reasons)
    assert found["connections"]["postgres"]["problem"] == reasons.get("postgres")


async def test_a_problem_is_shown_with_its_source_and_its_agent() -> None:
    worker = Worker("KopiNusa01", "WarungSari")
    worker.reasons = {"dlq WarungSari": "no pull request was answered lately", "agents": "not running: dlq"}
    worker.agents["dlq"] = False
    found = await worker.content()
    troubled = [source for source in found["sources"] if source["problem"]]
    assert [(source["company"], source["consumer"]) for source in troubled] == [("WarungSari", "dlq")]
    assert [agent["name"] for agent in found["agents"] if not agent["running"]] == ["dlq"]


async def test_readiness_that_cannot_be_told_still_gives_a_page_and_no_secret() -> None:
    worker = Worker("KopiNusa01")
    worker.reasons = {"broken": "yes"}
    found = await worker.content()
    assert found["reasons"] == {"readiness": "not known: RuntimeError"}
    assert found["state"] == "not_ready"


async def test_many_viewers_cost_the_database_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_status, "CACHE_SECONDS", 3600.0)
    worker = Worker("KopiNusa01")
    async with served(worker) as client:

        async def look() -> str:
            async with client.get("/status.json") as answer:
                return await answer.text()

        answers = await asyncio.gather(*(look() for _ in range(20)))
    assert len(set(answers)) == 1
    assert worker.asked == 1


async def test_a_thousand_companies_leave_the_loop_free_and_the_content_small() -> None:
    worker = Worker(*THOUSAND)
    rounds = 0

    async def others() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    await worker.history.record()
    # Events get their turn after each hundred companies.
    assert rounds >= len(THOUSAND) // 100 - 1
    rounds = 0
    for _ in range(180):
        worker.history._snapshots.append(worker.history._snapshots[-1]._replace(at=time.monotonic()))
    body = await worker.status.body()
    task.cancel()
    assert rounds >= len(THOUSAND) // 100
    assert len(body) < 80 * 1024


async def answered(worker: Worker, address: str) -> Any:
    """What one address of /status.json says."""
    async with served(worker) as client, client.get(f"/status.json{address}") as answer:
        assert answer.status == 200
        return await answer.json()


def names(content: Any, rows: str = "companies") -> list[str]:
    return [row["company"] for row in content[rows]]


async def test_companies_are_listed_by_trouble_then_by_lag_then_by_dead_letters() -> None:
    worker = Worker("Quiet", "Letters", "Lagging", "Broken", "Busy")
    for source in worker.sources:
        source.in_flight = 0
    for company, pending in (("Busy", 5), ("Lagging", 7), ("Quiet", 0), ("Letters", 0)):
        worker.metrics.lag(company, "realtime", pending, 1)
    worker.metrics.exhausted("Letters", 2, 0.0)
    worker.reasons = {"company Broken": "its schema is not ours", "realtime Broken": "waits", "postgres": "x"}
    content = await worker.content()
    assert names(content) == ["Broken", "Lagging", "Busy", "Letters", "Quiet"]
    assert names(content, "dead_letters") == names(content)
    first = content["companies"][0]
    assert (first["problem"], first["lag"]) == ("company: its schema is not ours; realtime: waits", None)
    assert content["companies"][1]["lag"] == 8
    assert content["totals"]["troubled"] == 1
    assert content["totals"]["companies"] == content["found"] == 5


async def test_of_a_thousand_companies_some_are_listed_but_all_are_counted() -> None:
    worker = Worker(*THOUSAND)
    for company in THOUSAND:
        worker.metrics.lag(company, "realtime", 2, 0)
        worker.metrics.exhausted(company, 1, 0.0)
    worker.reasons = {f"realtime {company}": "refused" for company in THOUSAND[:70]}
    content = await worker.content()
    assert names(content) == list(THOUSAND[:50])
    assert {len(content[rows]) for rows in ("companies", "dead_letters", "reasons")} == {50}
    assert len(content["sources"]) == 150
    assert content["more_reasons"] == 20
    totals = content["totals"]
    assert (totals["sources"], totals["refused"], totals["pulling"]) == (3000, 70, 2930)
    assert (totals["pending"], totals["exhausted"]) == (2000, 1000)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("?search=toko99", [f"Toko99{number}Nusantara" for number in range(10)]),
        ("?search=nothing+like+it", []),
        ("?search=toko99&limit=3", [f"Toko99{number}Nusantara" for number in range(3)]),
        ("?limit=0", []),
        ("?company=Toko123Nusantara", ["Toko123Nusantara"]),
        ("?company=toko123nusantara", []),
        ("?company=", []),
    ],
)
async def test_companies_are_found(address: str, expected: list[str]) -> None:
    content = await answered(Worker(*THOUSAND), address)
    assert names(content) == names(content, "dead_letters") == expected
    assert sorted({row["company"] for row in content["sources"]}) == expected


async def test_no_address_makes_a_document_without_bounds_or_an_error_of_ours() -> None:
    worker = Worker(*THOUSAND)
    assert len(names(await answered(worker, "?limit=999999999999999999"))) == worker_status.MOST_LISTED
    async with served(worker) as client:
        for limit in ("-1", "many", "1e3", "%C2%B2"):
            async with client.get(f"/status.json?limit={limit}") as answer:
                assert answer.status == 400, limit
    for number in range(200):
        await worker.status.body(worker_status.Question(search=f"nothing {number}"))
    assert len(worker.status._answers) <= 50


async def test_a_company_in_full_has_its_event_types_and_its_reasons() -> None:
    name = 'Kopi&?#"<Ã'
    worker = Worker(name, "Other")
    worker.reasons = {f"realtime {name}": "refused", "realtime Other": "not this"}
    worker.metrics.received(name, "v1.messages.upsert", 3)
    worker.metrics.settled(name, "v1.messages.upsert", "nack_retryable", "timeout", 0.1, 0.1)
    worker.metrics.received("Other", "v1.chats.upsert", 9)
    content = await answered(worker, f"?{urlencode({'company': name})}")
    assert content["company"] == {
        "company": name,
        "served": True,
        "reasons": {f"realtime {name}": "refused"},
        "events": [{"type": "v1.messages.upsert", "received": 3, "processed": 0, "failed": 1}],
    }
    content = await answered(worker, "?company=Elsewhere")
    assert content["company"]["served"] is False


async def test_rates_of_a_company_are_its_own() -> None:
    worker = Worker("KopiNusa01", "WarungSari")
    await worker.history.record()
    worker.metrics.received("KopiNusa01", "v1.messages.upsert", 12)
    await worker.history.record()
    rates = {row["company"]: row["received"] for row in (await worker.content())["companies"]}
    assert rates["KopiNusa01"] > 0
    assert rates["WarungSari"] == 0


async def test_a_fleet_shows_what_is_in_hand_of_each_company_and_its_three_sources() -> None:
    worker = Worker("*")
    worker.metrics.counts.clear()
    for company in ("KopiNusa01", "WarungSari"):
        worker.metrics.add_company(company)
    worker.status.in_hand = lambda: {"WarungSari": 40}
    content = await worker.content()
    assert names(content) == ["WarungSari", "KopiNusa01"]
    assert [(row["lag"], row["held"]) for row in content["companies"]] == [(40, 40), (0, 0)]
    assert [row["company"] for row in content["sources"]] == ["*"] * 3
    assert content["totals"]["companies"] == 2


async def test_the_documented_pages_stay_what_they_are() -> None:
    async with served(Worker("KopiNusa01")) as client:
        for path in ("/health", "/ready", "/metrics", "/"):
            async with client.get(path) as answer:
                assert answer.status == 200, path
        async with client.get("/nothing") as answer:
            assert answer.status == 404
