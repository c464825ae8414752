"""The composition root: builds connections, metrics, agents and sources from the settings, and Faust around them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from events.delivery import Batch, Delivery
from events.subjects import ConsumerType, Tenant
from streams import logs
from streams.cli.commands import CommandApp, Operations
from streams.config.settings import Settings, SettingsError
from streams.jetstream.broker import Broker
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.incarnation import compare_streams
from streams.jetstream.pull_source import PullSource
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec, consumers
from streams.lifecycle.bootstrap import Bootstrap
from streams.lifecycle.company_startup import CompanyStartup
from streams.lifecycle.conditions import Conditions
from streams.lifecycle.outages import Outages
from streams.lifecycle.periodic_tasks import GAUGES_EVERY, PeriodicTasks
from streams.lifecycle.readiness import Readiness
from streams.lifecycle.scheduler import PeriodicTask, Scheduler, WakeUp
from streams.lifecycle.sources import Sources
from streams.lifecycle.startup import Startup
from streams.lifecycle.watchdog import LOOK_EVERY, Activity, Watchdog
from streams.monitoring import http, status_page
from streams.monitoring.metrics import Metrics
from streams.monitoring.metrics_history import SNAPSHOT_EVERY, MetricsHistory
from streams.monitoring.worker_status import WorkerStatus
from streams.version import VERSION
from streams.worker.application import Connections, EventsWorker, use_fast_loop
from streams.worker.channel import DirectChannel
from streams.worker.shutdown import Shutdown, drain_budget
from tables.connection.pool import Database
from tables.tenant import TenantTables


@dataclass(frozen=True, slots=True)
class Agents:
    """The agents, and the channels that lead to them."""

    routing: Routing
    replay: DeadLetterReplayer
    settlement: Settlement
    batches: DirectChannel[Batch]
    dead_letter_batches: DirectChannel[Batch]

    def channel(self, consumer_type: ConsumerType) -> DirectChannel[Batch]:
        """Where the batches of this type of consumer go."""
        return self.dead_letter_batches if consumer_type == "dlq" else self.batches

    async def on_max_deliveries(self, spec: ConsumerSpec, delivery: Delivery) -> None:
        """Handle a message that reached the limit of an operator's consumer."""
        if spec.consumer_type == "dlq":
            await self.replay.on_max_deliveries(spec.tenant, delivery)
        else:
            await self.routing.on_max_deliveries(spec.tenant, spec.consumer_type, delivery)


class Container:
    """Builds the parts of one worker, each from those above it. `app` is the Faust application around them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.shutdown = Shutdown(settings.stop_timeout)
        self.conditions = Conditions()
        self.consumer_states = ConsumerStates()
        self.activity = Activity()
        self.metrics = Metrics(
            [tenant.company for tenant in settings.tenants],
            jid_limit=settings.metrics_jid_limit,
            version=VERSION,
        )
        self.database = Database(settings.postgres_dsn, size=settings.postgres_pool_size)
        self.tables = {tenant: self._tables(tenant) for tenant in settings.tenants}
        self.broker = self._broker()
        self.reconciler = Reconciler(self.broker, settings, self.consumer_states)
        self.bootstrap = Bootstrap(
            settings=settings,
            database=self.database,
            broker=self.broker,
            tables=self.tables.__getitem__,
        )
        self.app = self._app()
        self.agents = self._agents()
        self.specs = [spec for tenant in settings.tenants for spec in consumers(settings, tenant)]
        self.pull_sources = {spec: self._pull_source(spec) for spec in self.specs}
        self.sources = Sources(
            broker=self.broker,
            reconciler=self.reconciler,
            sources=self.pull_sources,
            on_max_deliveries=self.agents.on_max_deliveries,
        )
        self.outages = Outages(
            conditions=self.conditions,
            nats_problem=lambda: self.broker.problem,
            ping_database=self.database.ping,
        )
        self.watchdog = Watchdog(
            sources=self.sources.started_sources,
            consumer_states=self.consumer_states,
            activity=self.activity,
            limit=settings.stall_timeout,
            outage=self.outages.current,
            fail=self.shutdown.fail,
        )
        self.readiness = Readiness(
            conditions=self.conditions,
            outages=self.outages,
            watchdog=self.watchdog,
            sources=self.sources.started_sources,
            dead_agents=self.app.dead_agents,
        )
        self._register_pages()
        self._register_services()

    def _tables(self, tenant: Tenant) -> TenantTables:
        observer = self.activity.observer(tenant.company, self.metrics.database_observer(tenant.company))
        return TenantTables(
            self.database, tenant.schema, observer, post_scan_delay=self.settings.postscan_delay
        )

    def _broker(self) -> Broker:
        settings = self.settings
        return Broker(
            urls=settings.nats_servers,
            name=f"daisi-wa-events-processor {VERSION}",
            on_closed=partial(self.shutdown.fail, "the connection to NATS was closed for good"),
            on_reconnect=self.metrics.reconnected,
            login=settings.login,
            domain=settings.nats_jetstream_domain or "",
        )

    def _app(self) -> CommandApp:
        settings = self.settings
        return CommandApp(
            "daisi-wa-events-processor",
            # Never connected: Faust requires a broker's name.
            broker="kafka://none.invalid",
            Worker=EventsWorker,
            web_port=settings.server_port,
            web_bind=",".join(settings.server_bind),
            agent_supervisor="mode.supervisors.CrashingSupervisor",
            shutdown=self.shutdown,
            connections=[
                self.broker,
                Connections("the connections to PostgreSQL", self.database.close),
            ],
            operations=Operations(
                settings=settings,
                database=self.database,
                broker=self.broker,
                bootstrap=self.bootstrap,
            ),
        )

    def _agents(self) -> Agents:
        """Three agents, each on a channel of its own, registered by hand and by name."""
        settings, tables = self.settings, self.tables.__getitem__
        batches: DirectChannel[Batch] = DirectChannel(self.app)
        dead_letter_batches: DirectChannel[Batch] = DirectChannel(self.app)
        onboarding_jobs: DirectChannel[OnboardingJob] = DirectChannel(self.app)
        policies = retry_policies(settings)
        throttle = HistoryThrottle()
        settlement = Settlement(
            dead_letters=DeadLetterPublisher(
                publisher=self.broker,
                stream=settings.dlq_stream,
                tables=tables,
                meter=self.metrics,
                health=self.conditions,
            ),
            subject=settings.dlq_subject,
            meter=self.metrics,
        )
        writer = EventWriter(tables=tables, writer=BatchWriter("storing", self.conditions), throttle=throttle)
        onboarding = Onboarding(
            tables=lambda tenant: self.tables[tenant].onboarding,
            probe=lambda tenant: self.tables[tenant].probe,
            writer=BatchWriter("onboarding", self.conditions),
            settlement=settlement,
            meter=self.metrics,
            send=onboarding_jobs.send_item,
            pool_size=settings.onboarding_pool_size,
            queue_size=settings.onboarding_queue_size,
            max_block=settings.onboarding_max_block,
        )
        routing = Routing(
            writer=writer,
            settlement=settlement,
            onboarding=onboarding,
            policies=policies,
            throttle=throttle,
            meter=self.metrics,
        )
        replay = DeadLetterReplayer(
            writer=writer,
            onboarding=onboarding,
            settlement=DeadLetterSettlement(tables=tables, policy=policies["dlq"], meter=self.metrics),
            policy=policies["dlq"],
            workers=settings.dlq_workers,
            meter=self.metrics,
        )
        self.app.agent(batches, name="routing")(routing.run)
        self.app.agent(dead_letter_batches, name="dlq")(replay.run)
        self.app.agent(onboarding_jobs, name="onboarding")(onboarding.run)
        self.metrics.watch_dlq(lambda: replay.queue_length, lambda: replay.active)
        self.metrics.watch_onboarding(lambda: onboarding.waiting)
        return Agents(routing, replay, settlement, batches, dead_letter_batches)

    def _pull_source(self, spec: ConsumerSpec) -> PullSource:
        return PullSource(
            spec,
            broker=self.broker,
            send=self.agents.channel(spec.consumer_type).send_item,
            restore=partial(self.reconciler.restore, spec),
            unanswered=partial(self.conditions.unanswered.begin, spec.name),
            answered=partial(self.conditions.unanswered.end, spec.name),
            meter=self.metrics,
            drain_budget=drain_budget(self.settings.stop_timeout),
        )

    def _register_pages(self) -> None:
        self.metrics.watch_readiness(self.readiness.reasons)
        http.register(
            self.app,
            metrics=self.metrics if self.settings.metrics_enabled else None,
            readiness=self.readiness.reasons,
            version=VERSION,
        )

    def _register_services(self) -> None:
        ready, wake_up = asyncio.Event(), WakeUp()
        companies = CompanyStartup(
            specs=self.specs,
            stream=self.reconciler.stream,
            schema=self.bootstrap.schema,
            consumer=self.sources.make_consumer,
            start_source=self.sources.start_source,
            on_company=wake_up.notify,
            unserved=self.conditions.unserved,
        )
        startup = Startup(
            steps=self.bootstrap.steps(),
            companies=companies,
            sources=self.sources,
            conditions=self.conditions,
            ready=ready,
            fail=self.shutdown.fail,
            on_drained=self.agents.settlement.stop,
        )
        scheduler = Scheduler(self._periodic_tasks(companies), ready, wake_up)
        self.app.register_services(scheduler, startup)

    def _periodic_tasks(self, companies: CompanyStartup) -> list[PeriodicTask]:
        post_scan = PostScan(tables=lambda tenant: self.tables[tenant].post_scan)
        tasks = PeriodicTasks(
            database=self.database,
            tenants=companies.companies,
            tables=self.tables.__getitem__,
            api=self.broker,
            specs=self.specs,
            served=companies.is_served,
            metrics=self.metrics,
            consumer_states=self.consumer_states,
            post_scan=post_scan.run_due,
            publish=self.settings.postgres_auto_migrate,
        )
        sources = list(self.pull_sources.values())
        incarnations = [source.incarnation for source in sources]
        return [
            *tasks.all(),
            *self._status_page(sources),
            PeriodicTask("watchdog", LOOK_EVERY, self.watchdog.look),
            PeriodicTask(
                "incarnations of streams", GAUGES_EVERY, partial(compare_streams, self.broker, incarnations)
            ),
        ]

    def _status_page(self, sources: Sequence[PullSource]) -> list[PeriodicTask]:
        """Put the status page on the web server; the task takes the samples for its charts. Not without metrics."""
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


def build(environ: Mapping[str, str]) -> CommandApp:
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
