"""Subjects and tenants (SUB-1, SUB-3)."""

from __future__ import annotations

import pytest

from events import history, models
from events.subjects import (
    EVENT_TYPES,
    HISTORICAL,
    REALTIME,
    Tenant,
    company_problem,
    consumer_type,
    event_type,
)


@pytest.mark.rule("SUB-1", "SUB-2")
@pytest.mark.parametrize("base", EVENT_TYPES)
def test_a_base_subject_with_one_token_more_is_of_that_event_type(base: str) -> None:
    assert event_type(base) == base
    assert event_type(Tenant("KopiNusa01").subject(base)) == base


@pytest.mark.rule("SUB-2")
@pytest.mark.parametrize(
    "subject",
    [
        "",
        "v1",
        "v1.messages",
        "v1.foo.bar.KopiNusa01",
        "v999.chats.upsert.KopiNusa01",
        "v1.messages.upsert.KopiNusa01.more",
        "v1.messages.upsertKopiNusa01",
        "V1.messages.upsert.KopiNusa01",
        "v1.contacts.history.KopiNusa01",
        "v1.dlq.KopiNusa01",
    ],
)
def test_any_other_subject_is_unknown(subject: str) -> None:
    assert event_type(subject) is None


@pytest.mark.rule("SUB-1")
def test_there_are_seven_realtime_and_three_historical_types() -> None:
    assert (len(REALTIME), len(HISTORICAL)) == (7, 3)
    assert {consumer_type(base) for base in REALTIME} == {"realtime"}
    assert {consumer_type(base) for base in HISTORICAL} == {"historical"}


@pytest.mark.rule("SUB-1")
def test_each_event_type_has_a_payload_and_each_payload_an_event_type() -> None:
    assert set(models.REALTIME) == set(REALTIME)
    assert set(history.HISTORICAL) == set(HISTORICAL)


@pytest.mark.rule("SUB-3")
def test_the_case_of_a_company_is_kept_everywhere_but_in_its_schema() -> None:
    tenant = Tenant("KopiNusa01")
    assert tenant.subject("v1.dlq") == "v1.dlq.KopiNusa01"
    assert tenant.company == "KopiNusa01"
    assert tenant.schema == "daisi_kopinusa01"


@pytest.mark.rule("SUB-4")
@pytest.mark.parametrize(
    "company",
    [
        "",
        " ",
        "a b",
        "a\tb",
        "a\n",
        "a.b",
        "*",
        "a>",
        "a/b",
        "a\\b",
        "a\x00b",
        "a\x1fb",
        "x" * 58,
        "\u00e9" * 29,
    ],
)
def test_a_company_that_cannot_be_a_token_is_refused_with_a_reason(company: str) -> None:
    assert company_problem(company)


@pytest.mark.rule("SUB-4")
def test_a_company_of_bytes_that_are_no_text_is_refused_too() -> None:
    """The environment gives such bytes as surrogates, which cannot be encoded."""
    assert company_problem("kopi\udcff")


@pytest.mark.rule("SUB-4")
@pytest.mark.parametrize(
    "company", ["A", "KopiNusa01", "kopi-nusa_01", "x" * 57, "\u00e9" * 28, "kopi\u2713"]
)
def test_any_other_company_is_accepted(company: str) -> None:
    assert company_problem(company) is None


def test_the_longest_company_gives_the_longest_schema_name_that_is_not_cut() -> None:
    assert len(Tenant("x" * 57).schema.encode()) == 63
