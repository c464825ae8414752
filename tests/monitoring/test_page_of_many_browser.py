"""The status page of a thousand companies in a real browser: trouble on top, found by name, a page for each."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from playwright.async_api import Browser, Page, expect

from tests.integration.test_page import Worker, serving
from tests.monitoring.test_page_browser import CONTRAST, PATIENCE, browser, opened_at, overflow, says, state

__all__ = ["browser"]  # a fixture

# Whatever a name may have in it; it stands in an address, too.
STRANGE: Final = 'Kopi&co=1#2?3+4%20"<b>Ã</b>'
COMPANIES: Final = (*(f"Toko{number:03d}" for number in range(999)), STRANGE)
BROKEN: Final = "Toko777"
LAGGING: Final = "Toko555"


def fleet() -> Worker:
    """A worker of a thousand companies: one is broken, one lags, all others are in order."""
    worker = Worker(*COMPANIES)
    for source in worker.sources:
        source.in_flight = 0
    for company in COMPANIES:
        worker.metrics.lag(company, "realtime", 0, 0)
        worker.metrics.dlq_state(company, 0, 0.0)
        worker.metrics.exhausted(company, 0, 0.0)
    worker.metrics.lag(LAGGING, "realtime", 4321, 0)
    worker.metrics.received(STRANGE, "v1.messages.upsert", 12)
    worker.reasons = {f"realtime {BROKEN}": "permission denied"}
    return worker


@asynccontextmanager
async def shown(browser: Browser, address: str = "", width: int = 1180) -> AsyncIterator[tuple[Page, Worker]]:
    worker = fleet()
    async with (
        serving(worker) as server,
        opened_at(browser, f"{server.make_url('/')}{address}", width=width) as page,
    ):
        yield page, worker


@pytest.mark.parametrize("width", [1180, 360])
async def test_trouble_is_on_top_of_a_thousand_companies_then_lag(browser: Browser, width: int) -> None:
    async with shown(browser, width=width) as (page, _):
        await state(page, "not_ready")
        rows = page.locator("#rows tbody tr")
        await expect(rows).to_have_count(50)
        await says(rows.nth(0).locator("td").nth(0), BROKEN)
        await says(rows.nth(0).locator("td").nth(1), "realtime: permission denied")
        await says(rows.nth(1).locator("td").nth(0), LAGGING)
        await says(rows.nth(1).locator("td").nth(2), "4,321")
        await says(page.locator("#listed"), re.compile("^1,000, the first 50 shown; 1 with trouble"))
        await says(page.locator("#companies"), "1,000 companies")
        await says(page.locator("#part-sources .tell"), "2999 of 3000 pulling")
        assert await overflow(page) <= 0
        assert await page.evaluate(CONTRAST) == []


async def test_a_company_is_found_by_a_part_of_its_name_and_has_a_page(browser: Browser) -> None:
    async with shown(browser) as (page, _):
        await page.get_by_label("Find a company").fill("kopi&co")
        rows = page.locator("#rows tbody tr")
        await expect(rows).to_have_count(1)
        await says(page.locator("#listed"), re.compile("^1 of 1,000;"))
        await rows.nth(0).get_by_role("link", name=STRANGE).click()
        await says(page.locator("#company-title"), f"Company {STRANGE}")
        await says(page.locator("#types tbody td").nth(0), "v1.messages.upsert")
        await says(page.locator("#types tbody td").nth(1), "12")
        await expect(page.locator("#companies-list")).to_be_hidden()
        await expect(page.locator("#sources tbody tr")).to_have_count(3)
        assert await page.locator("b", has_text="Ã").count() == 0
        await page.get_by_role("link", name="All companies").click()
        await expect(page.locator("#rows tbody tr")).to_have_count(50)


async def test_the_page_of_a_company_tells_its_trouble_and_keeps_up(browser: Browser) -> None:
    async with shown(browser, f"?company={BROKEN}") as (page, worker):
        await says(page.locator("#company-reasons li"), f"realtime {BROKEN}: permission denied")
        await says(page.locator("#waiting dd").first, "0")
        worker.metrics.dlq_state(BROKEN, 17, 60.0)
        await says(page.locator("#waiting dd").first, "17")
        worker.reasons = {}
        await expect(page.locator("#company-reasons li")).to_have_count(0, timeout=PATIENCE)
        await state(page, "ready")
        assert await overflow(page) <= 0


async def test_a_company_that_is_not_served_is_said_to_be_none(browser: Browser) -> None:
    async with shown(browser, "?company=Nobody") as (page, _):
        await says(page.locator("#company-title"), "Company Nobody")
        await expect(page.locator("#company-reasons li")).to_contain_text("does not serve it")


async def test_the_page_asks_for_no_more_than_it_shows(browser: Browser) -> None:
    async with shown(browser) as (page, _):
        async with page.expect_response("**/status.json") as answer:
            body = await (await answer.value).body()
        assert len(body) < 80 * 1024
        assert len(json.loads(body)["companies"]) == 50
