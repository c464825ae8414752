"""Where everything is put together: settings, connections, metrics, agents, sources, and Faust around them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from agents.dead_letters import DeadLetters
from agents.dlq import DeadLetterRetry
from agents.onboarding import Onboarding
from agents.policy import Limits
from agents.post_scan import PostScan
from agents.routing import Routing
from agents.storing import Storing
from streams import logs, page, topology, web
from streams.advisories import MaxDeliverWatch
from streams.broker import Broker
from streams.channels import DirectChannel
from streams.chores import Chores
from streams.commands import Operations
from streams.config import Settings, SettingsError
from streams.delivery import Delivery, Role
from streams.intake import Intake, Step
from streams.jetstream import PullSource
from streams.maintenance import Chore, Maintenance
from streams.metrics import Metrics
from streams.preparation import Preparation
from streams.readiness import Readiness
from streams.runtime import Connections, EventsApp, EventsWorker, use_fast_loop
from streams.samples import EVERY, Samples
from streams.source_meter import SourceMeter
from streams.specs import ConsumerSpec, byte_share, consumers, share, topology_config
from streams.stall import LOOK_EVERY, Activity, StallWatch
from streams.standing import Standings
from streams.subjects import Tenant
from streams.version import VERSION
from tables.pool import Database
from tables.tenant import TenantTables

DRAIN_BUDGET: Final = 25.0


class Assembly:
    """The parts of one worker. `app` is the Faust application around them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.readiness = Readiness()
        self.ready = asyncio.Event()
        self.metrics = Metrics(
            [tenant.company for tenant in settings.tenants],
            jid_limit=settings.metrics_jid_limit,
            version=VERSION,
        )
        self.standings = Standings()
        self.activity = Activity()
        self.database = Database(settings.postgres_dsn, size=settings.postgres_pool_size)
        self.tables = {tenant: self._tables_of(tenant) for tenant in settings.tenants}
        self.topology = topology_config(settings)
        self.app = self._faust_app()
        self.broker = Broker(
            urls=settings.nats_servers,
            name=f"daisi-wa-events-processor {VERSION}",
            on_closed=partial(self.app.fail, "the connection to NATS was closed for good"),
            on_reconnect=self.metrics.reconnected,
            login=settings.login,
        )
        self._agents()
        self._services()
        self.app.operations = Operations(
            tenants=settings.tenants,
            database=self.database,
            broker=self.broker,
            topology=self.topology,
            preparation=self.preparation,
        )

    def _tables_of(self, tenant: Tenant) -> TenantTables:
        observer = self.activity.observer(tenant.company, self.metrics.database_observer(tenant.company))
        return TenantTables(
            self.database, tenant.schema, observer, post_scan_delay=self.settings.postscan_delay
        )

    def _faust_app(self) -> EventsApp:
        settings = self.settings
        app = EventsApp(
            "daisi-wa-events-processor",
            # Never connected: Faust wants a broker's name, and JetStream is ours.
            broker="kafka://none.invalid",
            Worker=EventsWorker,
            web_port=settings.server_port,
            web_bind=settings.server_bind,
            agent_supervisor="mode.supervisors.CrashingSupervisor",
        )
        metrics = self.metrics if settings.metrics_enabled else None
        web.register(app, metrics=metrics, readiness=self.readiness.reasons, version=VERSION)
        return app

    def _agents(self) -> None:
        """Three agents, each on a channel of its own, registered by hand and by name."""
        self.channels = {name: DirectChannel(self.app) for name in ("routing", "dlq", "onboarding")}
        settings, tables = self.settings, self.tables.__getitem__
        self.onboarding = Onboarding(
            tables=lambda tenant: self.tables[tenant].onboarding,
            meter=self.metrics,
            send=self.channels["onboarding"].deliver_item,
            pool_size=settings.onboarding_pool_size,
            queue_size=settings.onboarding_queue_size,
            max_block=settings.onboarding_max_block,
            health=self.readiness,
        )
        self.dead_letters = DeadLetters(
            publisher=self.broker,
            subject=settings.dlq_subject,
            tables=tables,
            meter=self.metrics,
            ended=lambda work, action, error: self.routing.ended(work, action, error),
        )
        self.routing = Routing(
            tables=tables,
            storing=Storing(self.readiness),
            dead_letters=self.dead_letters,
            onboard=self.onboarding.submit,
            limits=limits(settings),
            meter=self.metrics,
        )
        self.dlq = DeadLetterRetry(
            routing=self.routing,
            tables=tables,
            limits=limits(settings)["dlq"],
            workers=settings.dlq_workers,
            meter=self.metrics,
        )
        self.post_scan = PostScan(tables=lambda tenant: self.tables[tenant].post_scan)
        for name, body in (
            ("routing", self.routing.run),
            ("dlq", self.dlq.run),
            ("onboarding", self.onboarding.run),
        ):
            self.app.agent(self.channels[name], name=name)(body)
        self.metrics.watch_dlq(lambda: self.dlq.queue_length, lambda: self.dlq.active)
        self.metrics.watch_onboarding(lambda: self.onboarding.waiting)

    def _services(self) -> None:
        settings = self.settings
        specs = [spec for tenant in settings.tenants for spec in consumers(self.topology, tenant)]
        sources = [self._source(spec) for spec in specs]
        self.preparation = Preparation(
            settings=settings,
            database=self.database,
            broker=self.broker,
            topology=self.topology,
            tables=self.tables.__getitem__,
        )
        chores = Chores(
            database=self.database,
            tenants=settings.tenants,
            tables=self.tables.__getitem__,
            api=self.broker,
            config=self.topology,
            meter=self.metrics,
            standings=self.standings,
            post_scan=self.post_scan.run_due,
            publish=settings.postgres_auto_migrate,
        )
        self.readiness.broker_problem = lambda: self.broker.problem
        self.readiness.ping_database = self.database.ping
        self.readiness.dead_agents = self.app.dead_agents
        self.readiness.sources = sources
        self.stall_watch = StallWatch(
            sources=sources,
            standings=self.standings,
            activity=self.activity,
            limit=settings.stall_timeout,
            outage=self._outage,
            fail=self.app.fail,
        )
        self.readiness.stalled = self.stall_watch.problems
        self.metrics.watch_readiness(self.readiness.reasons)
        self.app.connections = [self.broker, Connections(self.database.close)]
        self.app.intake = [
            Maintenance(
                [
                    *chores.all(),
                    *self._page(sources),
                    Chore("stall watch", LOOK_EVERY, self.stall_watch.look),
                ],
                self.ready,
            ),
            Intake(
                steps=[*self.preparation.steps(), Step("limits of consumers", self._watch_limits)],
                sources=sources,
                readiness=self.readiness,
                ready=self.ready,
                fail=self.app.fail,
                after=self.dead_letters.stop,
            ),
        ]

    def _source(self, spec: ConsumerSpec) -> PullSource:
        channel = self.channels["dlq" if spec.role == "dlq" else "routing"]
        return PullSource(
            broker=self.broker,
            tenant=spec.tenant,
            role=spec.role,
            stream=spec.stream,
            durable=spec.durable,
            batch_size=share(spec.batch_size, len(self.settings.tenants)),
            batch_bytes=byte_share(spec.role, len(self.settings.tenants)),
            ack_wait=spec.ack_wait,
            send=channel.deliver_item,
            prepare=None if spec.role == "dlq" else self.routing.prepare,
            restore=partial(self._restore, spec.tenant),
            meter=SourceMeter(self.metrics, spec.tenant.company),
            drain_budget=DRAIN_BUDGET,
        )

    def _page(self, sources: Sequence[PullSource]) -> list[Chore]:
        """Put the page for people on the web server; the chore fills its charts. Not without metrics."""
        if not self.settings.metrics_enabled:
            return []
        samples = Samples(self.metrics.collectors, [tenant.company for tenant in self.settings.tenants])
        status = page.Status(
            version=VERSION,
            companies=[tenant.company for tenant in self.settings.tenants],
            sources=sources,
            agents=lambda: {name: name not in self.app.dead_agents() for name in self.app.agents},
            readiness=self.readiness.reasons,
            collectors=self.metrics.collectors,
            samples=samples,
        )
        page.register(self.app, status)
        return [Chore("samples for the page", EVERY, samples.take)]

    async def _restore(self, tenant: Tenant) -> None:
        await topology.reconcile(self.broker, self.topology, [tenant], self.standings)

    async def _outage(self) -> str | None:
        """What is waited out; a dead-letter stream that takes nothing is tried for ever, too."""
        if self.dead_letters.waiting:
            return "dead letters wait for their stream"
        return await self.readiness.outage()

    async def _watch_limits(self) -> None:
        """Listen for what a durable with a limit of its own gives up (design 4)."""
        for spec in await topology.limited(self.broker, self.topology, self.settings.tenants):
            await self.app.add_runtime_dependency(
                MaxDeliverWatch(
                    broker=self.broker,
                    stream=spec.stream,
                    durable=spec.durable,
                    given_up=partial(self._given_up, spec),
                )
            )

    async def _given_up(self, spec: ConsumerSpec, delivery: Delivery) -> None:
        if spec.role == "dlq":
            await self.dlq.abandon(spec.tenant, delivery)
        else:
            await self.routing.abandon(spec.tenant, spec.role, delivery)


def limits(settings: Settings) -> dict[Role, Limits]:
    """How often and how late each kind of event is tried again; seconds."""
    return {
        "realtime": Limits(
            settings.realtime_max_deliver, settings.realtime_nak_base_delay, settings.realtime_nak_max_delay
        ),
        "historical": Limits(
            settings.historical_max_deliver,
            settings.historical_nak_base_delay,
            settings.historical_nak_max_delay,
        ),
        "dlq": Limits(
            settings.dlq_max_deliver,
            settings.dlq_base_delay_minutes * 60,
            settings.dlq_max_delay_minutes * 60,
        ),
    }


def build(environ: Mapping[str, str]) -> EventsApp:
    """The app for these variables. Raises `SettingsError`."""
    settings = Settings.from_env(environ)
    logs.configure(settings.log_level)
    use_fast_loop()
    return Assembly(settings).app


def __getattr__(name: str) -> Any:
    """`app`, made when Faust asks for it: importing this module must not need any settings."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        globals()["app"] = app = build(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    return app
