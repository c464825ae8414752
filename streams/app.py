"""Where everything is put together: settings, connections, metrics, agents, sources, and Faust around them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from agents.batch_writer import BatchWriter
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.dead_letter_replay import DeadLetterReplayer
from agents.event_writer import EventWriter
from agents.history_throttle import HistoryThrottle
from agents.onboarding import Onboarding, OnboardingJob
from agents.post_scan import PostScan
from agents.retry_policy import RetryPolicy
from agents.routing import Routing
from agents.settlement import DeadLetterSettlement, Settlement
from events.delivery import Batch, ConsumerType, Delivery
from events.subjects import Tenant
from streams import logs
from streams.cli.commands import Operations
from streams.config.settings import Settings, SettingsError
from streams.jetstream.broker import Broker
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.incarnation import IncarnationWatch
from streams.jetstream.pull_source import PullSource
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec, batch_share, byte_share, consumers, topology_config
from streams.lifecycle.bootstrap import Bootstrap
from streams.lifecycle.company_startup import CompanyStarts
from streams.lifecycle.periodic_tasks import GAUGES_EVERY, PeriodicTasks
from streams.lifecycle.readiness import Readiness
from streams.lifecycle.scheduler import PeriodicTask, Scheduler
from streams.lifecycle.serving import Serving
from streams.lifecycle.startup import Startup
from streams.lifecycle.watchdog import LOOK_EVERY, Activity, Watchdog
from streams.monitoring import http, status_page
from streams.monitoring.metrics import Metrics
from streams.monitoring.metrics_history import SNAPSHOT_EVERY, MetricsHistory
from streams.monitoring.source_meter import SourceMeter
from streams.monitoring.worker_status import WorkerStatus
from streams.version import VERSION
from streams.worker.application import Connections, EventsApp, EventsWorker, use_fast_loop
from streams.worker.channel import DirectChannel
from streams.worker.shutdown import drain_budget
from tables.connection.pool import Database
from tables.tenant import TenantTables


class Container:
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
        self.consumer_states = ConsumerStates()
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
            domain=settings.nats_jetstream_domain or "",
        )
        self.reconciler = Reconciler(
            api=self.broker,
            config=self.topology,
            consumer_states=self.consumer_states,
            readiness=self.readiness,
        )
        self._agents()
        self._services()
        self.app.operations = Operations(
            tenants=settings.tenants,
            database=self.database,
            broker=self.broker,
            topology=self.topology,
            bootstrap=self.bootstrap,
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
            web_bind=",".join(settings.server_bind),
            stop_timeout=settings.stop_timeout,
            agent_supervisor="mode.supervisors.CrashingSupervisor",
        )
        metrics = self.metrics if settings.metrics_enabled else None
        http.register(app, metrics=metrics, readiness=self.readiness.reasons, version=VERSION)
        return app

    def _agents(self) -> None:
        """Three agents, each on a channel of its own, registered by hand and by name."""
        settings, tables = self.settings, self.tables.__getitem__
        self.batches: DirectChannel[Batch] = DirectChannel(self.app)
        self.dead_letter_batches: DirectChannel[Batch] = DirectChannel(self.app)
        onboarding_jobs: DirectChannel[OnboardingJob] = DirectChannel(self.app)
        policies = retry_policies(settings)
        throttle = HistoryThrottle()
        self.settlement = Settlement(
            dead_letters=DeadLetterPublisher(
                publisher=self.broker,
                stream=settings.dlq_stream,
                tables=tables,
                meter=self.metrics,
                health=self.readiness,
            ),
            subject=settings.dlq_subject,
            meter=self.metrics,
        )
        writer = EventWriter(tables=tables, writer=BatchWriter("storing", self.readiness), throttle=throttle)
        onboarding = Onboarding(
            tables=lambda tenant: self.tables[tenant].onboarding,
            probe=lambda tenant: self.tables[tenant].probe,
            writer=BatchWriter("onboarding", self.readiness),
            settlement=self.settlement,
            meter=self.metrics,
            send=onboarding_jobs.send_item,
            pool_size=settings.onboarding_pool_size,
            queue_size=settings.onboarding_queue_size,
            max_block=settings.onboarding_max_block,
        )
        self.routing = Routing(
            writer=writer,
            settlement=self.settlement,
            onboarding=onboarding,
            policies=policies,
            throttle=throttle,
            meter=self.metrics,
        )
        self.dlq = DeadLetterReplayer(
            writer=writer,
            onboarding=onboarding,
            settlement=DeadLetterSettlement(tables=tables, policy=policies["dlq"], meter=self.metrics),
            policy=policies["dlq"],
            workers=settings.dlq_workers,
            meter=self.metrics,
        )
        self.post_scan = PostScan(tables=lambda tenant: self.tables[tenant].post_scan)
        self.app.agent(self.batches, name="routing")(self.routing.run)
        self.app.agent(self.dead_letter_batches, name="dlq")(self.dlq.run)
        self.app.agent(onboarding_jobs, name="onboarding")(onboarding.run)
        self.metrics.watch_dlq(lambda: self.dlq.queue_length, lambda: self.dlq.active)
        self.metrics.watch_onboarding(lambda: onboarding.waiting)

    def _services(self) -> None:
        settings = self.settings
        specs = [spec for tenant in settings.tenants for spec in consumers(self.topology, tenant)]
        self.sources = {spec: self._source(spec) for spec in specs}
        self.serving = Serving(
            broker=self.broker,
            reconciler=self.reconciler,
            sources=self.sources,
            given_up=self._given_up,
            # Not the app: it stops its services one after the other, each within seconds.
            run=lambda service: self.startup.add_runtime_dependency(service),
            drop=lambda service: self.startup.remove_dependency(service),
        )
        self.bootstrap = Bootstrap(
            settings=settings,
            database=self.database,
            broker=self.broker,
            tables=self.tables.__getitem__,
        )
        self.companies = CompanyStarts(
            specs=specs,
            stream=self.reconciler.stream,
            schema=self.bootstrap.schema,
            consumer=self.serving.consumer,
            serve=self.serving.serve,
            prepared=lambda: self.scheduler.hurry(),
            readiness=self.readiness,
        )
        self.readiness.broker_problem = lambda: self.broker.problem
        self.readiness.ping_database = self.database.ping
        self.readiness.dead_agents = self.app.dead_agents
        self.readiness.sources = self.serving.started
        self.watchdog = Watchdog(
            sources=self.serving.started,
            consumer_states=self.consumer_states,
            activity=self.activity,
            limit=settings.stall_timeout,
            outage=self.readiness.outage,
            fail=self.app.fail,
        )
        self.readiness.stalled = self.watchdog.problems
        self.metrics.watch_readiness(self.readiness.reasons)
        self.app.connections = [
            self.broker,
            Connections("the connections to PostgreSQL", self.database.close),
        ]
        self.scheduler = Scheduler(self._chores(), self.ready)
        self.startup = Startup(
            steps=self.bootstrap.steps(),
            companies=self.companies,
            sources=self.serving.started,
            readiness=self.readiness,
            ready=self.ready,
            fail=self.app.fail,
            after=self.settlement.stop,
        )
        self.app.startup = [self.scheduler, self.startup]

    def _chores(self) -> list[PeriodicTask]:
        chores = PeriodicTasks(
            database=self.database,
            tenants=self.companies.companies,
            tables=self.tables.__getitem__,
            api=self.broker,
            config=self.topology,
            meter=self.metrics,
            consumer_states=self.consumer_states,
            post_scan=self.post_scan.run_due,
            served=self.companies.is_served,
            publish=self.settings.postgres_auto_migrate,
        )
        incarnations = IncarnationWatch(self.broker, [source.incarnation for source in self.sources.values()])
        return [
            *chores.all(),
            *self._page(list(self.sources.values())),
            PeriodicTask("stall watch", LOOK_EVERY, self.watchdog.look),
            PeriodicTask("incarnations of streams", GAUGES_EVERY, incarnations.look),
        ]

    def _source(self, spec: ConsumerSpec) -> PullSource:
        channel = self.dead_letter_batches if spec.role == "dlq" else self.batches
        return PullSource(
            broker=self.broker,
            tenant=spec.tenant,
            role=spec.role,
            stream=spec.stream,
            durable=spec.durable,
            batch_size=batch_share(spec.batch_size, len(self.settings.tenants)),
            batch_bytes=byte_share(spec.role, len(self.settings.tenants)),
            ack_wait=spec.ack_wait,
            send=channel.send_item,
            restore=partial(self.reconciler.restore, spec),
            meter=SourceMeter(self.metrics, spec.tenant.company),
            drain_budget=drain_budget(self.settings.stop_timeout),
            recovered=partial(self.readiness.answered, f"{spec.role} {spec.tenant.company}"),
        )

    def _page(self, sources: Sequence[PullSource]) -> list[PeriodicTask]:
        """Put the page for people on the web server; the chore fills its charts. Not without metrics."""
        if not self.settings.metrics_enabled:
            return []
        companies = [tenant.company for tenant in self.settings.tenants]
        history = MetricsHistory(self.metrics.collectors, companies)
        status = WorkerStatus(
            version=VERSION,
            companies=companies,
            sources=sources,
            agents=lambda: {name: name not in self.app.dead_agents() for name in self.app.agents},
            readiness=self.readiness.reasons,
            collectors=self.metrics.collectors,
            history=history,
        )
        status_page.register(self.app, status)
        return [PeriodicTask("samples for the page", SNAPSHOT_EVERY, history.record)]

    async def _given_up(self, spec: ConsumerSpec, delivery: Delivery) -> None:
        if spec.role == "dlq":
            await self.dlq.on_max_deliveries(spec.tenant, delivery)
        else:
            await self.routing.on_max_deliveries(spec.tenant, spec.role, delivery)


def retry_policies(settings: Settings) -> dict[ConsumerType, RetryPolicy]:
    """How often and how late each kind of event is tried again; seconds."""
    of = settings
    return {
        "realtime": RetryPolicy(
            of.realtime_max_deliver, of.realtime_nak_base_delay, of.realtime_nak_max_delay
        ),
        "historical": RetryPolicy(
            of.historical_max_deliver, of.historical_nak_base_delay, of.historical_nak_max_delay
        ),
        "dlq": RetryPolicy(of.dlq_max_deliver, of.dlq_base_delay_minutes * 60, of.dlq_max_delay_minutes * 60),
    }


def build(environ: Mapping[str, str]) -> EventsApp:
    """The app for these variables. Raises `SettingsError`."""
    settings = Settings.from_env(environ)
    logs.configure(settings.log_level)
    use_fast_loop()
    return Container(settings).app


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
