"""Every documented status of onboarding, provoked on a running worker (ONB-13 to ONB-15)."""

from __future__ import annotations

import pytest

from testkit.worker import Worker
from tests import builders
from tests.acceptance.company_probe import CompanyProbe, comes_to

_MESSAGES = "v1.messages.upsert"


async def _onboarding(worker: Worker, probe: CompanyProbe, expected: dict[str, int]) -> None:
    """Wait until the tasks ended so, and each was offered and timed."""

    async def found() -> dict[str, int]:
        scrape = worker.scrape()
        statuses = ("success_created", "success_exists", "error_db", "error_other")
        return {
            status: int(count)
            for status in statuses
            if (
                count := scrape.value(
                    "onboarding_tasks_processed_total", company_id=probe.company, status=status
                )
            )
        }

    await comes_to(expected, found)

    async def around() -> list[float]:
        scrape = worker.scrape()
        names = ("tasks_submitted_total", "processing_duration_seconds_count")
        counted = [scrape.value(f"onboarding_{name}", company_id=probe.company) for name in names]
        return [*counted, scrape.value("onboarding_queue_length")]

    total = sum(expected.values())
    await comes_to([total, total, 0], around)


@pytest.mark.rule("ONB-13")
async def test_a_new_sender_is_success_created_and_a_known_one_success_exists(
    shared: Worker, served: CompanyProbe
) -> None:
    for number in range(3):
        await served.publish(_MESSAGES, builders.message(message_id=f"M{number}"))
        await served.settled()
    await _onboarding(shared, served, {"success_created": 1, "success_exists": 2})


@pytest.mark.rule("ONB-13")
async def test_a_contact_that_an_event_made_is_success_exists(shared: Worker, served: CompanyProbe) -> None:
    await served.publish("v1.contacts.upsert", builders.contact())
    await served.settled()
    await served.publish(_MESSAGES, builders.message())
    await _onboarding(shared, served, {"success_exists": 1})
    assert await served.count("onboarding_log") == 1


@pytest.mark.rule("ONB-14")
async def test_a_contact_that_the_database_refuses_is_error_db_and_a_dead_letter(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.trip("contacts", "NEW.phone_number = '62899'", "22001")
    await served.publish(_MESSAGES, builders.message(message_id="bad", from_phone="62899"))
    # Live, and once more as a dead letter, which is replayed on its arrival.
    await _onboarding(shared, served, {"error_db": 2})
    assert await served.count("messages") == 1
    assert "22001" in (await served.letter())["error"]


@pytest.mark.rule("ONB-15")
async def test_a_phone_of_which_nothing_is_left_is_error_other_and_the_message_is_stored(
    shared: Worker, served: CompanyProbe
) -> None:
    await served.publish(_MESSAGES, builders.message(from_phone="+ ()"))
    await _onboarding(shared, served, {"error_other": 1})
    assert await served.letters() == 0
    assert (await served.count("messages"), await served.count("contacts")) == (1, 0)


@pytest.mark.rule("ONB-10")
async def test_onboarding_that_changes_a_contact_touches_updated_at_and_metadata(
    served: CompanyProbe,
) -> None:
    await served.publish("v1.contacts.upsert", builders.contact())
    await served.settled()
    [before] = await served.rows("contacts")
    campaign = {"is_campaign": True, "tags": "promo,ig", "assigned_to": "user-12", "origin": "ads"}
    published = await served.publish(_MESSAGES, builders.message(campaign=campaign))
    await served.settled()
    [after] = await served.rows("contacts")
    assert (after["tags"], after["assigned_to"], after["origin"]) == ("promo,ig", "user-12", "ads")
    assert after["first_message_id"] == "3EB0A1F2C4"
    assert after["updated_at"] > before["updated_at"]
    assert after["last_metadata"]["stream_sequence"] == published.seq
    assert after["push_name"] == before["push_name"]


@pytest.mark.rule("ONB-1")
async def test_outgoing_messages_broadcasts_and_newsletters_are_not_onboarded(
    shared: Worker, served: CompanyProbe
) -> None:
    for number, changes in enumerate(
        (
            {"flow": "OUT"},
            {"from_phone": ""},
            {"jid": "status@broadcast"},
            {"jid": "1203630@newsletter"},
        )
    ):
        await served.publish(_MESSAGES, builders.message(message_id=f"M{number}", **changes))
    await served.settled()
    await _onboarding(shared, served, {})
    assert await served.count("contacts") == 0
