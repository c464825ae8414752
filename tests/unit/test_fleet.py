"""Which companies a fleet serves, and what becomes of the events of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from events.subjects import Tenant
from streams.lifecycle import fleet as module
from streams.lifecycle.conditions import Conditions
from streams.lifecycle.fleet import Fleet, FleetRules
from tables.schema.companies import Company


def _company(name: str) -> Company:
    return Company(Tenant(name).schema, name, frozenset(), None)


class Stage:
    """A fleet whose database is a list of companies."""

    def __init__(
        self,
        *listed: str,
        allow: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        provision: bool = True,
        maximum: int = 1000,
    ) -> None:
        self.listed = [_company(name) for name in listed]
        self.halted: set[str] = set()
        self.provisioned: list[str] = []
        self.failures: list[Exception] = []
        self.refused = 0
        self.served: list[str] = []
        self.conditions = Conditions(fleet=True)
        self.fleet = Fleet(
            rules=FleetRules(allow=allow, exclude=exclude, provision=provision, maximum=maximum),
            listed=self._list,
            schemas=self._schemas,
            halted=lambda: self.halted,
            provision=self._provision,
            outage=self._outage,
            on_company=lambda tenant: self.served.append(tenant.company),
            on_refused=self._refuse,
            troubles=self.conditions.companies,
        )

    async def _list(self) -> Sequence[Company]:
        return self.listed

    async def _schemas(self) -> set[str]:
        return {each.schema for each in self.listed}

    async def _provision(self, tenant: Tenant) -> None:
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop()
        self.provisioned.append(tenant.company)
        self.listed.append(_company(tenant.company))

    async def _outage(self) -> bool:
        return False

    def _refuse(self) -> None:
        self.refused += 1

    def drop(self, company: str) -> None:
        """Drop its schema."""
        self.listed = [each for each in self.listed if each.name != company]

    @property
    def troubles(self) -> dict[str, str]:
        return dict(self.conditions.company_troubles())


@pytest.mark.rule("FLT-6")
async def test_a_new_company_is_provisioned_once_for_all_that_wait_for_it() -> None:
    stage = Stage()
    await stage.fleet.load()
    assert stage.fleet.admit("Kopi") == "served"
    await asyncio.gather(*(stage.fleet.serve(Tenant("Kopi")) for _ in range(3)))
    assert (stage.provisioned, stage.served, stage.fleet.tenants) == (["Kopi"], ["Kopi"], [Tenant("Kopi")])
    assert stage.fleet.admit("Kopi") == "served"


async def test_a_schema_that_cannot_be_made_yet_is_tried_again_and_named_meanwhile() -> None:
    stage = Stage()
    stage.failures = [OSError("disk full")]
    serving = asyncio.create_task(stage.fleet.serve(Tenant("Kopi")))
    while not stage.troubles:
        await asyncio.sleep(0)
    assert stage.troubles == {"company Kopi": "disk full"}
    await serving
    assert (stage.troubles, stage.provisioned) == ({}, ["Kopi"])


@pytest.mark.rule("FLT-5")
@pytest.mark.parametrize(
    ("company", "admission"),
    [
        ("KopiNusa", "served"),
        ("kopiNusa", "refused"),  # patterns keep to the case, as companies do
        ("KopiBig", "refused"),
        ("Teh", "served"),
        ("Tehh", "refused"),
        ("Kopi" * 20, "refused"),  # too long for a schema
    ],
)
async def test_patterns_say_who_is_served(company: str, admission: str) -> None:
    stage = Stage(allow=("Kopi*", "Teh"), exclude=("*Big",))
    assert stage.fleet.admit(company) == admission
    assert stage.fleet.admit(company) == admission
    assert stage.refused == (2 if admission == "refused" else 0)


@pytest.mark.rule("FLT-6")
async def test_without_provisioning_events_wait_until_somebody_makes_the_schema() -> None:
    stage = Stage("Kopi", provision=False)
    await stage.fleet.load()
    assert (stage.fleet.admit("Kopi"), stage.fleet.admit("Teh")) == ("served", "waits")
    assert "COMPANY_PROVISION" in stage.troubles["new companies"]
    stage.listed.append(_company("Teh"))
    await stage.fleet.load()
    assert stage.fleet.admit("Teh") == "served"


@pytest.mark.rule("FLT-6")
async def test_made_up_companies_fill_the_catalogue_up_to_the_maximum_only() -> None:
    stage = Stage("Kopi", maximum=3)
    await stage.fleet.load()
    admissions = [stage.fleet.admit(f"Made{number}") for number in range(100_000)]
    assert admissions.count("served") == 2
    assert set(admissions[2:]) == {"waits"}
    assert "COMPANY_MAX" in stage.troubles["new companies"]
    assert len(stage.troubles) == 1
    assert stage.fleet.admit("Kopi") == "served"


@pytest.mark.rule("FLT-7")
async def test_a_name_that_differs_in_case_only_is_not_served_and_the_worker_goes_on() -> None:
    stage = Stage("Kopi")
    await stage.fleet.load()
    assert (stage.fleet.admit("KOPI"), stage.fleet.admit("Kopi")) == ("waits", "served")
    assert "'Kopi'" in stage.troubles["schema daisi_kopi"]


@pytest.mark.rule("FLT-9")
async def test_a_company_whose_schema_was_dropped_is_a_new_one_at_its_next_event() -> None:
    stage = Stage("Kopi", "Teh")
    await stage.fleet.load()
    await stage.fleet.prepare_all()
    stage.drop("Kopi")
    await stage.fleet.load()
    assert stage.fleet.tenants == [Tenant("Teh")]
    assert stage.fleet.admit("Kopi") == "served"
    await stage.fleet.serve(Tenant("Kopi"))
    assert stage.provisioned == ["Kopi", "Teh", "Kopi"]


@pytest.mark.rule("FLT-9")
async def test_a_schema_dropped_with_events_in_hand_is_made_again_for_them() -> None:
    stage = Stage("Kopi")
    await stage.fleet.load()
    await stage.fleet.prepare_all()
    stage.drop("Kopi")
    stage.halted = {"Kopi"}
    await stage.fleet.load()
    await stage.fleet.serve(Tenant("Kopi"))
    assert stage.provisioned == ["Kopi", "Kopi"]
    await stage.fleet.load()
    assert stage.provisioned == ["Kopi", "Kopi"]


@pytest.mark.rule("FLT-9")
async def test_a_schema_dropped_before_it_was_prepared_is_not_made_again() -> None:
    stage = Stage("Kopi", "Teh")
    await stage.fleet.load()
    stage.drop("Kopi")
    await stage.fleet.load()
    await stage.fleet.prepare_all()
    assert stage.provisioned == ["Teh"]


async def test_a_schema_that_hangs_does_not_keep_the_next_companies_from_being_prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PREPARING", 0.05)
    stage = Stage("Hangs", "Kopi")
    await stage.fleet.load()
    stage.failures = [OSError("locked")] * 50
    preparing = asyncio.create_task(stage.fleet.prepare_all())
    while "company Hangs" not in stage.troubles:
        await asyncio.sleep(0)
    stage.failures.clear()
    await preparing
    assert "Kopi" in stage.served
