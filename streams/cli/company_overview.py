"""What `companies` shows: each company, who handles its events, and what waits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from events.subjects import ConsumerType, Tenant, company_problem
from streams.cli import formatting
from streams.config.settings import Settings
from streams.jetstream.company_durables import Durable, Owner, Survey
from streams.jetstream.company_lag import NONE, Lag, shared_lag
from streams.jetstream.stream_reader import Api
from streams.lifecycle.fleet import FleetRules
from tables.connection.pool import Database
from tables.schema.companies import Company, list_companies
from tables.schema.removal import count_exhausted

_COLUMNS: Final = ("company", "lag", "dead letters", "exhausted", "size", "served by")
# Companies without a schema whose lag is counted: a broken producer can make up any number of names.
_STRANGERS: Final = 1000
_EVENTS: Final[tuple[ConsumerType, ...]] = ("realtime", "historical")
_DEAD_LETTERS: Final[tuple[ConsumerType, ...]] = ("dlq",)
_EXCLUDED: Final = "excluded"
_CALLED: Final[Mapping[Owner, str]] = {
    "company": "own worker",
    "existing": "existing service",
    "fleet": "fleet",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """One company. `company` is None for a schema of which nobody knows whose it is; None is also what is not known."""

    company: str | None
    schema: str | None
    service: str
    is_served: bool  # somebody handles its events now
    stored: int  # events in the streams
    lag: Lag | None
    dead_letters: Lag | None
    exhausted: int | None
    bytes: int | None

    @property
    def trouble(self) -> tuple[Any, ...]:
        """The order in which an operator looks at them."""
        lag, dead = self.lag or NONE, self.dead_letters or NONE
        # Of whom nobody takes care, although somebody should, all that is stored waits.
        is_neglected = self.lag is None and not self.is_served and self.service != _EXCLUDED
        waiting = self.stored if is_neglected else lag.most
        unserved = waiting > 0 and not self.is_served
        return not unserved, -waiting, -dead.most, -(self.exhausted or 0), self.company or self.schema or ""


@dataclass(frozen=True, slots=True)
class CompanyService:
    """Who handles a company's events, as far as the server and these settings tell."""

    settings: Settings
    survey: Survey
    owners: Mapping[str, str]  # company by schema, where it is known

    def by_fleet(self, company: str) -> str | None:
        """How the fleet treats it: `fleet`, or why its events are not handled; None without a fleet."""
        rules = FleetRules.of(self.settings)
        if not self.settings.fleet and self.survey.shared("realtime") is None:
            return None
        if (problem := company_problem(company)) is not None:
            return f"refused: {problem}"
        if not rules.allows(company):
            return _EXCLUDED
        owner = self.owners.get(Tenant(company).schema)
        if owner is None and not rules.provision:
            return "waits for companies-provision"
        if owner not in (None, company):
            return f"refused: differs only in case from {owner}"
        return "fleet"

    def durables(self, company: str, kinds: Iterable[ConsumerType]) -> Sequence[Durable]:
        """Those that decide how far its events are handled."""
        wanted = tuple(kinds)
        found = [self.survey.shared(kind) for kind in wanted] if self.by_fleet(company) == "fleet" else []
        if not any(found):
            # Before the first start of a fleet, too.
            owner: Owner = "company" if self.survey.of(company) else "existing"
            found = [*self.survey.of(company, owner)]
            if owner == "existing" and found:
                found.append(self.survey.shared("dlq", "existing"))
        return [each for each in found if each is not None and each.consumer_type in wanted]

    def describe(self, company: str) -> tuple[str, bool]:
        """In words, and whether somebody handles its events now."""
        words: list[str] = []
        served = False
        by_fleet = self.by_fleet(company)
        if by_fleet == "fleet":
            shared = self.survey.shared("realtime")
            served = shared is not None and shared.used is not None
            words.append(_told("fleet", [shared] if shared is not None else []))
        elif by_fleet is not None:
            words.append(by_fleet)
        for owner in ("company", "existing"):
            if found := self.survey.of(company, owner):
                served = served or any(each.used for each in found)
                words.append(_told(_CALLED[owner], found))
        return ", ".join(words) or "nobody", served


async def overviews(
    api: Api, database: Database, settings: Settings, survey: Survey, *, pattern: str, lag: bool
) -> list[Overview]:
    """Every company that matches the pattern, those in trouble first. Raises `StorageError` and `TopologyError`."""
    schemas = {each.schema: each for each in await list_companies(database, sizes=True)}
    exhausted = await count_exhausted(database, list(schemas))
    service = CompanyService(
        settings, survey, {name: each.name for name, each in schemas.items() if each.name}
    )
    names = sorted(name for name in _names(survey, schemas.values()) if fnmatchcase(name, pattern))
    counted = _counted(names, schemas) if lag else []
    events = await _lags(api, service, counted, _EVENTS)
    letters = await _lags(api, service, counted, _DEAD_LETTERS)
    found = [
        _overview(name, service, schemas, exhausted, events.get(name), letters.get(name)) for name in names
    ]
    found += [
        Overview(None, each.schema, "nobody", False, 0, None, None, exhausted.get(each.schema), each.bytes)
        for each in schemas.values()
        if _is_nobodys(each, names) and fnmatchcase(each.schema.removeprefix("daisi_"), pattern.lower())
    ]
    return sorted(found, key=lambda each: each.trouble)


def as_table(found: Sequence[Overview]) -> str:
    """One line a company, with a heading."""
    return formatting.aligned(
        _COLUMNS,
        [
            (
                each.company or f"({each.schema})",
                _text(each.lag),
                _text(each.dead_letters),
                each.exhausted,
                formatting.size(each.bytes),
                each.service,
            )
            for each in found
        ],
    )


def as_objects(found: Sequence[Overview]) -> list[dict[str, object]]:
    """The same for JSON."""
    return [
        {
            "company": each.company,
            "schema": each.schema,
            "served_by": each.service,
            "is_served": each.is_served,
            "lag": each.lag and each.lag._asdict(),
            "dead_letters": each.dead_letters and each.dead_letters._asdict(),
            "exhausted": each.exhausted,
            "bytes": each.bytes,
        }
        for each in found
    ]


def _names(survey: Survey, schemas: Iterable[Company]) -> set[str]:
    return survey.companies | {each.name for each in schemas if each.name is not None}


def _is_nobodys(company: Company, names: Sequence[str]) -> bool:
    return company.name is None and all(Tenant(name).schema != company.schema for name in names)


def _counted(names: Sequence[str], schemas: Mapping[str, Company]) -> list[str]:
    known = [name for name in names if Tenant(name).schema in schemas]
    return known + [name for name in names if Tenant(name).schema not in schemas][:_STRANGERS]


async def _lags(
    api: Api, service: CompanyService, names: Sequence[str], kinds: Sequence[ConsumerType]
) -> dict[str, Lag]:
    """What is not handled, of some kinds of streams together; without companies of which nobody takes care."""
    lags: dict[str, Lag] = {}
    shared: dict[Durable, list[str]] = {}
    for name in names:
        for durable in service.durables(name, kinds):
            if durable.company is None:
                shared.setdefault(durable, []).append(name)
            else:
                lags[name] = lags.get(name, NONE).plus(Lag(durable.left, durable.left))
    specs = {spec.consumer_type: spec for spec in service.survey.specs}
    for durable, of in shared.items():
        for name, lag in (await shared_lag(api, specs[durable.consumer_type], durable, of)).items():
            lags[name] = lags.get(name, NONE).plus(lag)
    return lags


def _overview(
    name: str,
    service: CompanyService,
    schemas: Mapping[str, Company],
    exhausted: Mapping[str, int],
    lag: Lag | None,
    dead_letters: Lag | None,
) -> Overview:
    schema = Tenant(name).schema
    # A schema that is another's in another case is counted there.
    ours = schemas.get(schema)
    if ours is not None and ours.name not in (None, name):
        ours = None
    text, served = service.describe(name)
    counts = service.survey.stored.get(name, {})
    return Overview(
        company=name,
        schema=None if ours is None else schema,
        service=text,
        is_served=served,
        stored=sum(counts.get(kind, 0) for kind in _EVENTS),
        lag=lag,
        dead_letters=dead_letters,
        exhausted=None if ours is None else exhausted.get(schema),
        bytes=None if ours is None else ours.bytes,
    )


def _told(who: str, durables: Sequence[Durable]) -> str:
    """With what is wrong: a durable that nobody pulls from."""
    if not durables:
        return f"{who} (not started yet)"
    return who if any(each.used for each in durables) else f"{who} (nobody pulls)"


def _text(lag: Lag | None) -> str:
    if lag is None:
        return ""
    return str(lag.least) if lag.least == lag.most else f"{lag.least}..{lag.most}"
