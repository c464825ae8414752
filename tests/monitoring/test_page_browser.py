"""The status page in a real browser, with a real worker: right numbers, right colours, accessible."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Literal
from uuid import uuid4

import nats
import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from events.subjects import Tenant
from testkit.servers import NatsServer, PostgresServer
from testkit.worker import Worker
from tests import builders

Scheme = Literal["light", "dark"]

CHROMIUM: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
# Milliseconds; the page asks every two seconds, the worker measures every five.
PATIENCE: Final = 30_000
PHONE: Final = 360
UNKNOWN: Final = "\N{EN DASH}"
SECRET: Final = "Resep rahasia nenek"

# Each text against the first background behind it: what WCAG 2 calls contrast.
CONTRAST: Final = """() => {
  const colour = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const { rgb, a } = colour(getComputedStyle(node).backgroundColor);
      if (a === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (/SCRIPT|STYLE/.test(node.tagName)) continue;
    const [a, b] = [light(colour(getComputedStyle(node).color).rgb), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${walker.currentNode.textContent.trim()}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def company() -> str:
    return f"Kopi{uuid4().hex[:12].upper()}nusa"


@pytest.fixture(scope="module")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def worker(
    company: str, nats_server: NatsServer, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """One worker for all tests here; each leaves it ready."""
    log = tmp_path_factory.mktemp("page") / "worker.log"
    worker = Worker([company], nats_url=nats_server.url, postgres_dsn=postgres.dsn, log=log)
    worker.start()
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.kill()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium: a browser of playwright's own would have to be fetched."""
    if not CHROMIUM:
        absent = "no Chromium here: make system-deps installs it"
        if os.environ.get("CI"):
            pytest.fail(absent)
        pytest.skip(absent)
    async with async_playwright() as playwright:
        # Its sandbox refuses to work for root.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser,
    worker: Worker,
    *,
    scheme: Scheme = "light",
    width: int = 1180,
    complains: bool = False,
) -> AsyncIterator[Page]:
    """The page; fails if the browser complained about it, unless it is to complain."""
    async with opened_at(browser, f"{worker.url}/", scheme=scheme, width=width, complains=complains) as page:
        yield page


@asynccontextmanager
async def opened_at(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = 1180, complains: bool = False
) -> AsyncIterator[Page]:
    """The page at this address."""
    context = await browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    page = await context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.set_default_timeout(PATIENCE)
    await page.goto(url)
    await expect(page.locator("html")).not_to_have_attribute("data-state", "loading", timeout=PATIENCE)
    yield page
    await context.close()
    assert complains or not said


async def state(page: Page, name: str) -> None:
    """Wait for the page to be in this state."""
    await expect(page.locator("html")).to_have_attribute("data-state", name, timeout=PATIENCE)


async def says(locator: Locator, text: str | re.Pattern[str]) -> None:
    """Wait for the text."""
    await expect(locator).to_have_text(text, timeout=PATIENCE)


async def red(page: Page) -> bool:
    """Whether the head of the page is red."""
    text = await page.locator("header").evaluate("(node) => getComputedStyle(node).backgroundColor")
    r, g, b = map(int, re.findall(r"\d+", text)[:3])
    return r > 120 and r > 3 * max(g, b)


async def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return int(
        await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


async def publish(url: str, company: str, event_type: str, payloads: list[Any]) -> None:
    client = await nats.connect(url)
    try:
        for payload in payloads:
            body = payload if isinstance(payload, bytes) else builders.body(payload)
            await client.jetstream().publish(Tenant(company).subject(event_type), body)
    finally:
        await client.close()


async def test_the_numbers_are_those_of_the_traffic(
    browser: Browser, worker: Worker, nats_server: NatsServer, company: str
) -> None:
    """20 messages and one history batch are stored; 3 events are none, and wait as dead letters."""
    messages = [
        builders.message(message_id=f"PAGE{number}", company_id=company, flow="OUT", message_text=SECRET)
        for number in range(20)
    ]
    history = {"messages": [builders.message(message_id="PAGEOLD", company_id=company, flow="OUT")]}
    await publish(nats_server.url, company, "v1.messages.upsert", messages)
    await publish(nats_server.url, company, "v1.history.messages", [history])
    await publish(nats_server.url, company, "v1.chats.upsert", [b"{", b"[", b"\xff"])
    asked: list[str] = []
    async with opened(browser, worker) as page:
        page.on("request", lambda request: asked.append(request.url))
        await state(page, "ready")
        for name, total in (("received", 24), ("processed", 21), ("failed", 3), ("dead_lettered", 3)):
            await says(page.locator(f"#{name} .mean"), f"{total} in total")
        await expect(page.locator("#received .value")).to_have_text(
            re.compile(r"[\d.]+ /s"), timeout=PATIENCE
        )
        await says(page.locator("#latency .value").first, re.compile(r"[\d.]+ m?s"))
        await says(page.locator("#waiting dd").first, "3")
        await says(page.locator("#exhausted dd").first, "0")
        await says(page.locator("#part-sources .tell"), "3 of 3 pulling")
        await says(page.locator("#part-agents .tell"), "3 of 3 running")
        rows = page.locator("#sources tbody tr")
        await expect(rows).to_have_count(3)
        for number, (consumer, unacknowledged) in enumerate(
            (("realtime", "0"), ("historical", "0"), ("dlq", "3"))
        ):
            cells = rows.nth(number).locator("td")
            await says(cells.nth(0), company)
            await says(cells.nth(1), consumer)
            await says(cells.nth(3), "0")
            await says(cells.nth(4), unacknowledged)
            await says(cells.nth(8), re.compile(r"\d\.\d s ago"))
        assert await page.locator("#received .line").get_attribute("d")
        shown = await page.content()
    await agrees_with_metrics(worker)
    base = f"http://127.0.0.1:{worker.port}/"
    assert all(url.startswith((base, "data:")) for url in asked)
    for text in (shown, worker.page("/status.json")[1]):
        for secret in (SECRET, "PAGE1", builders.PHONE, "postgresql://", "nats://"):
            assert secret not in text


async def agrees_with_metrics(worker: Worker) -> None:
    scrape = await asyncio.to_thread(worker.scrape)
    prefix = "message_event_service_events"
    assert scrape.value(f"{prefix}_received_total") == 24
    assert scrape.value(f"{prefix}_processed_total") == 21
    assert scrape.value(f"{prefix}_failed_total") == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_turns_red_while_postgres_is_stopped_and_green_again_after(
    browser: Browser, worker: Worker, postgres: PostgresServer, scheme: Scheme
) -> None:
    async with opened(browser, worker, scheme=scheme) as page:
        await state(page, "ready")
        await says(page.locator("h1"), "Ready")
        assert not await red(page)
        await asyncio.to_thread(postgres.stop)
        try:
            await state(page, "not_ready")
            await says(page.locator("h1"), "Not ready")
            await says(page.locator("#reasons li").first, re.compile("^PostgreSQL: .+"))
            await says(page.locator("#part-postgresql .tell"), "Down")
            await says(page.locator("#part-nats .tell"), "Connected")
            await expect(page).to_have_title(re.compile("^Not ready"))
            assert await red(page)
            # What is read from PostgreSQL is not known any more.
            await says(page.locator("#exhausted dd").first, UNKNOWN)
            assert await page.evaluate(CONTRAST) == []
            assert await overflow(page) <= 0
        finally:
            await asyncio.to_thread(postgres.start)
        await state(page, "ready")
        await says(page.locator("#part-postgresql .tell"), "Answers")
        assert not await red(page)


async def test_it_turns_red_when_postgres_only_stops_to_answer(
    browser: Browser, worker: Worker, postgres: PostgresServer
) -> None:
    async with opened(browser, worker) as page:
        postgres.pause()
        try:
            await state(page, "not_ready")
            await says(page.locator("#part-postgresql .note"), "no answer")
        finally:
            postgres.resume()
        await state(page, "ready")


async def test_a_lost_worker_is_told_and_found_again(browser: Browser, worker: Worker) -> None:
    async with opened(browser, worker, complains=True) as page:
        await state(page, "ready")
        worker.kill()
        await state(page, "lost")
        await says(page.locator("h1"), "No answer from the worker")
        await says(page.locator("#lost"), re.compile(r"was true at \d\d:\d\d:\d\d"))
        assert await red(page)
        worker.start()
        await state(page, "ready")
        await expect(page.locator("#lost")).to_be_hidden()
    await asyncio.to_thread(worker.wait_ready)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 700, PHONE, 320])
async def test_it_fits_and_can_be_read(browser: Browser, worker: Worker, scheme: Scheme, width: int) -> None:
    async with opened(browser, worker, scheme=scheme, width=width) as page:
        await state(page, "ready")
        assert await overflow(page) <= 0
        assert await page.evaluate(CONTRAST) == []
        background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        darkness = sum(map(int, re.findall(r"\d+", background)[:3]))
        assert (darkness < 150) == (scheme == "dark")


async def test_charts_and_state_are_there_for_those_who_do_not_see_them(
    browser: Browser, worker: Worker
) -> None:
    async with opened(browser, worker) as page:
        await state(page, "ready")
        await expect(page.get_by_role("status")).to_contain_text("Ready")
        await expect(page.get_by_role("img", name=re.compile("^Received per second"))).to_have_count(1)
        await expect(
            page.get_by_role("table").get_by_role("columnheader", name="Unacknowledged")
        ).to_have_count(1)


@pytest.mark.parametrize("width", [1180, PHONE, 320])
async def test_nothing_that_is_shown_becomes_markup_or_breaks_the_page(
    browser: Browser, worker: Worker, width: int
) -> None:
    """Names and reasons of any kind: longer than the screen, or with markup in them."""
    hostile = "<img src=x onerror=alert(1)>" + "W" * 57
    figures = json.loads(worker.page("/status.json")[1])
    figures |= {"state": "not_ready", "reasons": {"postgres": hostile, hostile: hostile}, "version": hostile}
    figures["connections"]["postgres"]["problem"] = hostile
    for row in (*figures["sources"], *figures["companies"]):
        row["company"] = hostile
    figures["sources"][0] |= {"problem": hostile, "state": hostile}
    figures["companies"] = [figures["companies"][0] | {"problem": hostile}] * 2
    dead_letters = {"company": hostile, "waiting": 123_456_789, "oldest": 86_399, "exhausted": 123_456}
    figures["dead_letters"] = [dead_letters] * 2
    figures["totals"] |= {"companies": 2, "waiting": 246_913_578, "oldest": 86_399}
    async with opened(browser, worker, width=width) as page:
        await page.route("**/status.json", lambda route: route.fulfill(json=figures))
        await says(page.locator("#version"), hostile)
        await says(page.locator("#dead tbody td").first, hostile)
        await says(page.locator("#rows tbody td").first, hostile)
        await says(page.locator("#waiting dd").first, "246.9M")
        assert await page.locator("img").count() == 0
        assert await overflow(page) <= 0
