"""Known traffic for real workers that a real Prometheus scrapes, and the results it must have."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import nats

from events.subjects import Tenant
from testkit.publisher import Confirmed, Publisher
from testkit.servers import free_port
from testkit.traffic import Traffic, merged
from testkit.worker import ROOT, Scrape
from tests import builders
from tests.acceptance.company_probe import DLQ_STREAM, HISTORY_STREAM, REALTIME_STREAM, CompanyProbe, comes_to
from tests.acceptance.conftest import Launch
from tests.monitoring.dashboards import LOAD_TEST
from tests.monitoring.prometheus import Prometheus
from tests.programs import required

# A's dead letters are given up within seconds; B's still wait when everything is over.
A: Final = "TruthKopi01"
B: Final = "TruthToko02"
# The company of the load generator.
LOADED: Final = "TruthLoad03"
RULES: Final = ROOT / "docker" / "prometheus" / "rules"
EVENTS: Final = 230
# Seconds that most of the panels' rates look back.
WINDOW: Final = 300
_SEED: Final = 7
_LOAD_RATE: Final = 20
# Attempts of an event over both its queues; all of A's dead letters begin at 1.
REPLAYS_PUT_OFF: Final = 4
_SOON: Final = {"NATS_DLQBASEDELAYMINUTES": "0.005", "NATS_DLQMAXDELAYMINUTES": "0.005"}
# Long enough for an update that comes a little before its row, also on a busy machine.
_PATIENT: Final = {"NATS_REALTIME_NAKBASEDELAY": "500ms"}


@dataclass(slots=True)
class Facts:
    """What a company's traffic must have come to. Known from what was published, and from NATS and PostgreSQL."""

    stored: Counter[str] = field(default_factory=Counter)
    dead_lettered: Counter[str] = field(default_factory=Counter)
    deliveries: int = 0
    letters: int = 0
    onboarded: int = 0
    cured: int = 0
    exhausted: int = 0

    # Whether its dead letters wait, instead of being given up soon.
    patient: bool = False

    @property
    def waiting(self) -> int:
        """Dead letters that wait for their next try."""
        return self.letters if self.patient else 0

    @property
    def put_off(self) -> int:
        """Replays that were put off."""
        return self.letters * (1 if self.patient else REPLAYS_PUT_OFF)

    @property
    def too_large(self) -> int:
        """Events that went straight to exhausted_events, because NATS would not take their dead letter."""
        return sum(self.dead_lettered.values()) - self.letters


@dataclass(frozen=True, slots=True)
class Environment:
    """Everything after the traffic: nothing moves any more. The load generator is gone, it was seen until it ended."""

    prometheus: Prometheus
    facts: dict[str, Facts]
    pages: dict[str, Scrape]
    # When Prometheus looked at a job for the last time that counts; the moment at which a worker's rates are exact.
    moments: dict[str, float]
    idle: float
    confirmed_load: int

    def moment(self, company: str) -> float:
        """When the company's worker was last scraped."""
        return self.moments["tenant_app_A" if company == A else "tenant_app_B"]

    def latest(self, dashboard: str) -> float:
        """A moment at which everything of a dashboard was scraped."""
        return self.moments["loadgen"] if dashboard == LOAD_TEST else max(self.moments.values())


@contextmanager
def set_up(nats_url: str, postgres_dsn: str, folder: Path) -> Iterator[Environment]:
    """Two workers, the load generator, Prometheus with our rules; then the traffic, to its end."""
    # Before anything is started for nothing.
    required("prometheus")
    with ExitStack() as stack:
        launch = Launch(folder, nats_url, postgres_dsn)
        stack.callback(launch.kill_all)
        workers = [launch(A, also=_PATIENT | _SOON), launch(B, LOADED, also=_PATIENT)]
        port = free_port()
        jobs = {f"tenant_app_{'AB'[number]}": [_address(one.port)] for number, one in enumerate(workers)}
        prometheus = stack.enter_context(
            Prometheus({**jobs, "loadgen": [_address(port)]}, sorted(RULES.glob("*.yml")))
        )
        # Two samples of each worker before the first event: then every counter starts at 0 for `rate` too.
        prometheus.comes_to(2, 'count(count_over_time(daisi_build_info{job=~"tenant_app_."}[5m]) >= 2)')
        idle = time.time()
        load = stack.enter_context(_load(nats_url, port))
        facts = asyncio.run(_traffic(nats_url, postgres_dsn))
        for company, known in facts.items():
            prometheus.comes_to(known.exhausted, f'max(daisi_exhausted_events{{company_id="{company}"}})')
            prometheus.comes_to(known.waiting, f'max(daisi_dlq_messages{{company_id="{company}"}})')
            prometheus.comes_to(known.put_off, f'sum(dlq_task_retries_total{{company_id="{company}"}})')
        loaded = prometheus.scraped_since(time.time(), "loadgen_messages_attempted_total")
        load.terminate()
        load.wait()
        confirmed = asyncio.run(_at_rest(nats_url, postgres_dsn))
        over = time.time()
        moments = {
            job: prometheus.scraped_since(over, f'daisi_build_info{{job="{job}"}}') for job in jobs
        } | {"loadgen": loaded}
        # Else the zeros at the beginning are no longer in the window of a rate, and no rate times it is a count.
        assert max(moments.values()) - idle < WINDOW - 10, (
            "the traffic took longer than a window of the panels"
        )
        pages = {"tenant_app_A": workers[0].scrape(), "tenant_app_B": workers[1].scrape()}
        yield Environment(prometheus, facts, pages, moments, idle, confirmed)


def _address(port: int) -> str:
    return f"127.0.0.1:{port}"


@contextmanager
def _load(nats_url: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    arguments = ["--companies", LOADED, "--rate", str(_LOAD_RATE), "--nats-url", nats_url]
    # It ends by itself, should the tests be killed.
    arguments += ["--metrics-port", str(port), "--duration", "5m"]
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.load", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _at_rest(nats_url: str, postgres_dsn: str) -> int:
    """Wait until all that was loaded is settled, for gauges of a worker are of all its companies; how much it is."""
    total = 0
    async with _probes(nats_url, postgres_dsn, LOADED) as [probe]:
        for stream in (REALTIME_STREAM, HISTORY_STREAM):
            subjects = f"v1.*.*.{LOADED}"
            info = await probe.js.stream_info(stream, subjects_filter=subjects)
            if found := sum((info.state.subjects or {}).values()):
                total += found
                probe.expect(stream, (await probe.js.get_last_msg(stream, subjects)).seq or 0)
            await probe.settled(stream)
    return total


@asynccontextmanager
async def _probes(nats_url: str, postgres_dsn: str, *companies: str) -> AsyncIterator[list[CompanyProbe]]:
    nc = await nats.connect(nats_url)
    connection = await asyncpg.connect(postgres_dsn)
    try:
        yield [CompanyProbe(Tenant(company), nc, connection) for company in companies]
    finally:
        await connection.close()
        await nc.close()


async def _traffic(nats_url: str, postgres_dsn: str) -> dict[str, Facts]:
    facts = {A: Facts(), B: Facts(patient=True)}
    async with _probes(nats_url, postgres_dsn, A, B) as probes:
        confirmed: list[Confirmed] = []
        start = int(time.time())
        async with Publisher(probes[0].nc, on_confirmed=confirmed.append) as publisher:
            for one in merged(
                [Traffic(company, _SEED, start=start) for company in facts], EVENTS * len(facts)
            ):
                await publisher.send(one)
            await publisher.finish()
        for publication, _, repeat, _ in confirmed:
            if repeat:
                continue
            known = facts[publication.subject.rpartition(".")[2]]
            bad = any(item.refused for item in publication.items)
            (known.dead_lettered if bad else known.stored)[publication.event_type] += 1
            if publication.event_type == "v1.messages.upsert":
                known.onboarded += bool(publication.items[0].onboards)
        await _refuse_in_database(probes[0], facts[A])
        await _cure(probes[0], facts[A])
        for probe in probes:
            await _finish(probe, facts[probe.company])
    return facts


async def _refuse_in_database(probe: CompanyProbe, known: Facts) -> None:
    """A message that PostgreSQL refuses: at its first try, and at each of its replays."""
    await probe.trip("messages", "NEW.message_text = 'refuse me'", "22000")
    await probe.publish(
        "v1.messages.upsert", builders.message(message_id="refused", message_text="refuse me", from_phone="")
    )
    known.dead_lettered["v1.messages.upsert"] += 1


async def _cure(probe: CompanyProbe, known: Facts) -> None:
    """A dead letter whose replay works, as after a fault that was removed."""
    letter = builders.envelope(
        probe.of_us(builders.message(message_id="cured", from_phone="6281777000111")),
        source_subject=probe.tenant.subject("v1.messages.upsert"),
        company=probe.company,
        error="retryable: it was down",
        error_type="retryable",
        retry_count=5,
        event_version=builders.ABSENT,
        ts=builders.ABSENT,
    )
    await probe.publish("v1.dlq", letter)
    known.onboarded += 1
    known.cured += 1


async def _finish(probe: CompanyProbe, known: Facts) -> None:
    """Wait until all of it has come to its end, then ask NATS and PostgreSQL."""
    for stream in (REALTIME_STREAM, HISTORY_STREAM):
        await probe.settled(stream)
        known.deliveries += await probe.deliveries(stream)
    known.letters = await probe.letters() - known.cured
    known.exhausted = known.too_large + known.letters - known.waiting
    await comes_to(known.exhausted, lambda: probe.count("exhausted_events"))
    if known.patient:
        await _all_tried(probe)
    else:
        await probe.settled(DLQ_STREAM)


async def _all_tried(probe: CompanyProbe) -> None:
    """Wait until every dead letter was tried once and waits for its next try."""

    async def untried() -> int:
        return (await probe.consumer(DLQ_STREAM)).num_pending or 0

    await comes_to(0, untried)
