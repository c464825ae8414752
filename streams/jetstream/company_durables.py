"""What the server knows of companies: the durables that serve them, and how many messages are stored for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from events.subjects import ALL_COMPANIES, ConsumerType
from streams.config.settings import Settings
from streams.jetstream.changes import TopologyChange, look_up, refused
from streams.jetstream.predecessors import list_consumers
from streams.jetstream.specs import NANOSECONDS, ConsumerSpec, consumers
from streams.jetstream.stream_reader import Api, ApiError, nanoseconds

# Whose it is: a company's own, the existing service's, or a fleet's.
Owner = Literal["company", "existing", "fleet"]

# Seconds: a worker that has deliveries in hand and no pull request asks again within that time.
_RECENT: Final = 60.0
_NEVER: Final = "0001-01-01"


class Durable(NamedTuple):
    """A durable on one of our streams, as the server describes it; times in Unix nanoseconds, 0 if not known.

    `company` is None if it delivers the events of several. `start`: the first sequence that it was made for, `floor`:
    all up to it is settled, `delivered`: the highest that was delivered. `pending` are not delivered yet, `unsettled`
    are delivered and not settled. `used`: how somebody uses it now, or None.
    """

    consumer_type: ConsumerType
    stream: str
    name: str
    owner: Owner
    company: str | None
    start: int
    floor: int
    delivered: int
    pending: int
    unsettled: int
    created: int
    active: int
    used: str | None

    @property
    def left(self) -> int:
        """How many messages are not settled."""
        return self.pending + self.unsettled

    @property
    def position(self) -> int:
        """The first sequence that may not be settled."""
        return max(self.floor + 1, self.start)


@dataclass(frozen=True, slots=True)
class Survey:
    """The durables of all companies, and how many messages each company has in each kind of stream."""

    specs: Sequence[ConsumerSpec]  # a fleet's
    durables: Sequence[Durable]
    stored: Mapping[str, Mapping[ConsumerType, int]]

    @property
    def companies(self) -> set[str]:
        """Every company with messages or a durable of its own."""
        own = {durable.company for durable in self.durables if durable.company is not None}
        return own | set(self.stored)

    def of(self, company: str, owner: Owner = "company") -> list[Durable]:
        """The durables of one company."""
        return [each for each in self.durables if each.company == company and each.owner == owner]

    def shared(self, consumer_type: ConsumerType, owner: Owner = "fleet") -> Durable | None:
        """The durable of all companies on one of the streams."""
        chosen = (
            each
            for each in self.durables
            if (each.consumer_type, each.owner, each.company) == (consumer_type, owner, None)
        )
        return next(chosen, None)


async def survey(api: Api, settings: Settings) -> Survey:
    """Ask the server, with some requests a stream. Raises `TopologyError` and `BrokerError`."""
    specs = consumers(settings, None)
    durables: list[Durable] = []
    stored: dict[str, dict[ConsumerType, int]] = {}
    for spec in specs:
        if await look_up(api, "stream", spec.stream) is None:
            continue
        async for subject, count in _subjects(api, spec.stream):
            base, _, company = subject.rpartition(".")
            if f"{base}.{ALL_COMPANIES}" in spec.subjects:
                counts = stored.setdefault(company, {})
                counts[spec.consumer_type] = counts.get(spec.consumer_type, 0) + count
        async for info in list_consumers(api, spec.stream):
            if (found := _durable(spec, info)) is not None:
                durables.append(found)
    return Survey(specs, durables, stored)


def plan_drop(found: Survey, companies: Iterable[str]) -> tuple[list[TopologyChange], list[str]]:
    """Which durables of these companies a fleet makes superfluous, and why others are kept, a line each (FLT-10)."""
    wanted = set(companies)
    drops: list[TopologyChange] = []
    kept: list[str] = []
    for durable in found.durables:
        if durable.company not in wanted:
            continue
        reason = _needed(durable, found.shared(durable.consumer_type))
        if reason is None:
            drops.append(deletion(durable, "delete the old durable"))
        else:
            kept.append(f"consumer {durable.name} is kept: {reason}")
    return drops, kept


def deletion(durable: Durable, text: str) -> TopologyChange:
    """The change that deletes a durable."""
    request = (f"CONSUMER.DELETE.{durable.stream}.{durable.name}", None)
    return TopologyChange("consumer", durable.name, "delete", text, request)


def _needed(durable: Durable, shared: Durable | None) -> str | None:
    """Why a company's durable has to stay; None if the shared one has taken over all that is left to it."""
    if durable.used is not None:
        return durable.used
    if shared is None:
        return "it keeps the position for the fleet's, which is not there yet: start the worker first"
    if not durable.left:
        return None
    if durable.position < shared.start:
        return f"{durable.left} events are left to it, and {shared.name} began after them"
    # Whoever used it while the fleet ran had the company to itself: the fleet may have left its events out. A server
    # that was restarted no longer knows when that was.
    if not 0 < durable.active < shared.created:
        return (
            f"{durable.left} events are left to it, and it may have been used while {shared.name} left them out: "
            f"let a worker for {durable.company} finish them, or companies-forget delete it if the fleet did all along"
        )
    return None


async def _subjects(api: Api, stream: str) -> AsyncIterator[tuple[str, int]]:
    """Every subject of a stream with its number of messages, page by page."""
    offset, total = 0, 1
    while offset < total:
        try:
            info = await api.api(f"STREAM.INFO.{stream}", {"subjects_filter": ">", "offset": offset})
        except ApiError as error:
            raise refused("stream", stream, stream, error) from error
        subjects = info["state"].get("subjects") or {}
        for subject, count in subjects.items():
            yield subject, count
        offset += len(subjects) or 1
        total = info.get("total", 0)


def _durable(spec: ConsumerSpec, info: Mapping[str, Any]) -> Durable | None:
    """None for a consumer that serves nobody of ours."""
    whose = _owner(spec, info["name"], list(_filters(info["config"])))
    if whose is None:
        return None
    owner, company = whose
    delivered, floor = info["delivered"], info["ack_floor"]
    return Durable(
        consumer_type=spec.consumer_type,
        stream=spec.stream,
        name=info["name"],
        owner=owner,
        company=company,
        start=info["config"].get("opt_start_seq", 0),
        floor=floor["stream_seq"],
        delivered=delivered["stream_seq"],
        pending=info["num_pending"],
        unsettled=info["num_ack_pending"],
        created=nanoseconds(info["created"]),
        active=max(_moment(delivered), _moment(floor)),
        used=_use(info),
    )


def _owner(spec: ConsumerSpec, name: str, filters: Sequence[str]) -> tuple[Owner, str | None] | None:
    if name == spec.fleet_durable:
        return "fleet", None
    if name == spec.predecessor:
        return "existing", None
    old = spec.predecessor.removesuffix(ALL_COMPANIES)
    prefixes: tuple[tuple[str, Owner], ...] = ((spec.company_durable, "company"), (old, "existing"))
    for prefix, owner in prefixes:
        company = name.removeprefix(prefix)
        # Another program's consumer may have such a name: it is of the company whose events it gets.
        if company != name and filters and all(each.rpartition(".")[2] == company for each in filters):
            return owner, company
    return None


def _filters(config: Mapping[str, Any]) -> Iterator[str]:
    yield from config.get("filter_subjects") or ()
    if config.get("filter_subject"):
        yield config["filter_subject"]


def _use(info: Mapping[str, Any]) -> str | None:
    if waiting := info.get("num_waiting", 0):
        return f"somebody pulls from it now ({waiting} requests wait)"
    if info.get("push_bound"):
        return "somebody is subscribed to it now"
    last = _moment(info["delivered"])
    seconds = (nanoseconds(info["ts"]) - last) / NANOSECONDS if "ts" in info else _RECENT
    if info["num_ack_pending"] and last and seconds < _RECENT:
        return f"somebody has {info['num_ack_pending']} of its events in hand, delivered {seconds:.0f} s ago"
    return None


def _moment(position: Mapping[str, Any]) -> int:
    text = position.get("last_active", _NEVER)
    return 0 if text.startswith(_NEVER) else nanoseconds(text)
