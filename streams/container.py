"""The composition root: builds connections, metrics, agents and sources from the settings, and Faust around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from agents.batch_writer import BatchWriter
from agents.dead_letter_publisher import DeadLetterPublisher
from agents.dead_letter_replay import DeadLetterReplayer
from agents.event_writer import EventWriter
from agents.history_throttle import HistoryThrottle
from agents.onboarding import Onboarding
from agents.post_scan import run_due
from agents.received_event import ReceivedEvent
from agents.retry_policy import RetryPolicy
from agents.routing import Routing
from agents.settlement import DeadLetterSettlement, Settlement
from events.delivery import Batch, Delivery
from events.subjects import Tenant
from streams.cli.commands import CommandApp, Operations
from streams.config.settings import Settings
from streams.jetstream.batch_slots import BatchSlots
from streams.jetstream.broker import Broker
from streams.jetstream.consumer_state import ConsumerStates
from streams.jetstream.lanes import lanes
from streams.jetstream.pull_source import PullSource
from streams.jetstream.reconciler import Reconciler
from streams.jetstream.specs import ConsumerSpec, worker_consumers
from streams.lifecycle.bootstrap import Bootstrap
from streams.lifecycle.company_startup import CompanyStartup
from streams.lifecycle.conditions import Conditions
from streams.lifecycle.fleet import Fleet, FleetRules
from streams.lifecycle.outages import Outages
from streams.lifecycle.periodic_tasks import PeriodicTasks
from streams.lifecycle.readiness import Readiness
from streams.lifecycle.scheduler import PeriodicTask, Scheduler, WakeUp
from streams.lifecycle.sources import Sources
from streams.lifecycle.startup import Startup, StartupStep
from streams.lifecycle.watchdog import LOOK_EVERY, Watchdog
from streams.monitoring import http, status_page
from streams.monitoring.metrics import Metrics
from streams.monitoring.metrics_history import SNAPSHOT_EVERY
from streams.monitoring.worker_status import WorkerStatus
from streams.version import VERSION
from streams.worker.application import Connections
from streams.worker.channel import DirectChannel
from streams.worker.shutdown import Shutdown, drain_budget
from tables.connection.pool import Database
from tables.schema.companies import list_companies
from tables.schema.removal import existing_schemas
from tables.tenant import CompanyTables, TenantTables


class Container:
    """Builds the parts of one worker, each from those above it. `app` is the Faust application around them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.shutdown = Shutdown(settings.stop_timeout)
        self.conditions = Conditions(fleet=settings.fleet)
        self.consumer_states = ConsumerStates()
        self.companies = [tenant.company for tenant in settings.tenants]
        self.metrics = Metrics(self.companies, jid_limit=settings.metrics_jid_limit, version=VERSION)
        self.database = Database(settings.postgres_dsn, size=settings.postgres_pool_size)
        self.tables = CompanyTables(self._tables)
        self.broker = self._broker()
        self.reconciler = Reconciler(self.broker, settings, self.consumer_states)
        self.bootstrap = Bootstrap(settings, self.database, self.broker, self.tables)
        self.app = self._app()
        self.batches: DirectChannel[Batch] = DirectChannel(self.app)
        self.dead_letter_batches: DirectChannel[Batch] = DirectChannel(self.app)
        self.stored_events: DirectChannel[Sequence[ReceivedEvent]] = DirectChannel(self.app)
        self.policies = {kind: RetryPolicy(*limits) for kind, limits in settings.retries.items()}
        self.throttle = HistoryThrottle()
        self.settlement = self._settlement()
        self.writer = EventWriter(
            tables=self.tables.__getitem__,
            writer=BatchWriter("storing", self.conditions),
            throttle=self.throttle,
        )
        self.onboarding = self._onboarding()
        self.routing = self._routing()
        self.replay = self._replay()
        self.outages = Outages(self.conditions, self.broker, self.database.ping)
        self.wake_up = WakeUp()
        self.fleet = self._fleet()
        self.slots = BatchSlots(settings.postgres_pool_size)
        self.specs = worker_consumers(settings)
        self.pull_sources = {spec: self._pull_source(spec) for spec in self.specs}
        self.sources = Sources(self.broker, self.reconciler, self.pull_sources, self._on_max_deliveries)
        self.watchdog = self._watchdog()
        self.readiness = Readiness(
            self.conditions, self.outages, self.watchdog, self.sources.active, self.app.running_agents
        )
        self._register_agents()
        self._register_services()

    def _tables(self, tenant: Tenant) -> TenantTables:
        observer = self.metrics.database_observer(tenant.company)
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
            web_port=settings.server_port,
            web_bind=",".join(settings.server_bind),
            shutdown=self.shutdown,
            connections=[self.broker, Connections("the connections to PostgreSQL", self.database.close)],
            operations=Operations(settings, self.database, self.broker, self.bootstrap),
        )

    def _settlement(self) -> Settlement:
        dead_letters = DeadLetterPublisher(
            publisher=self.broker,
            stream=self.settings.dlq_stream,
            tables=self.tables.__getitem__,
            meter=self.metrics,
            health=self.conditions,
        )
        return Settlement(dead_letters=dead_letters, subject=self.settings.dlq_subject, meter=self.metrics)

    def _onboarding(self) -> Onboarding:
        return Onboarding(
            tables=self.tables.__getitem__,
            writer=BatchWriter("onboarding", self.conditions),
            settlement=self.settlement,
            meter=self.metrics,
            send=self.stored_events.send_item,
            pool_size=self.settings.onboarding_pool_size,
            queue_size=self.settings.onboarding_queue_size,
            max_block=self.settings.onboarding_max_block,
        )

    def _routing(self) -> Routing:
        return Routing(
            writer=self.writer,
            settlement=self.settlement,
            onboarding=self.onboarding,
            policies=self.policies,
            throttle=self.throttle,
            meter=self.metrics,
        )

    def _replay(self) -> DeadLetterReplayer:
        tables, policy = self.tables.__getitem__, self.policies["dlq"]
        return DeadLetterReplayer(
            writer=self.writer,
            onboarding=self.onboarding,
            settlement=DeadLetterSettlement(tables=tables, policy=policy, meter=self.metrics),
            policy=policy,
            workers=self.settings.dlq_workers,
            meter=self.metrics,
        )

    def _register_agents(self) -> None:
        """Three agents, each on a channel of its own, registered by hand and by name."""
        self.app.agent(self.batches, name="routing")(self.routing.run)
        self.app.agent(self.dead_letter_batches, name="dlq")(self.replay.run)
        self.app.agent(self.stored_events, name="onboarding")(self.onboarding.run)
        self.metrics.watch_dlq(lambda: self.replay.queue_length, lambda: self.replay.active)
        self.metrics.watch_onboarding(lambda: self.onboarding.waiting)

    async def _on_max_deliveries(self, spec: ConsumerSpec, delivery: Delivery) -> None:
        """Handle a message that reached the limit of an operator's consumer."""
        tenant = spec.tenant or Tenant(delivery.subject.rpartition(".")[2])
        if spec.consumer_type == "dlq":
            await self.replay.on_max_deliveries(tenant, delivery)
        else:
            await self.routing.on_max_deliveries(tenant, spec.consumer_type, delivery)

    def _pull_source(self, spec: ConsumerSpec) -> PullSource:
        channel = self.dead_letter_batches if spec.consumer_type == "dlq" else self.batches
        return PullSource(
            spec,
            broker=self.broker,
            lanes=lanes(spec, channel.send_item, self.fleet, self.slots),
            restore=partial(self.reconciler.restore, spec),
            unanswered=partial(self.conditions.unanswered.begin, spec.name),
            answered=partial(self.conditions.unanswered.end, spec.name),
            metrics=self.metrics,
            drain_budget=drain_budget(self.settings.stop_timeout),
        )

    def _fleet(self) -> Fleet:
        return Fleet(
            rules=FleetRules.of(self.settings),
            listed=partial(list_companies, self.database),
            schemas=partial(existing_schemas, self.database),
            halted=self.conditions.halted_companies,
            provision=self.bootstrap.provision,
            outage=self.outages.database_down,
            on_company=self._on_company,
            on_refused=self.metrics.company_refused,
            troubles=self.conditions.companies,
        )

    def _on_company(self, tenant: Tenant) -> None:
        """A company of the fleet is served from now on."""
        self.metrics.add_company(tenant.company)
        self.wake_up.notify()

    def _watchdog(self) -> Watchdog:
        return Watchdog(
            sources=self.sources.active,
            consumer_states=self.consumer_states,
            operations=self.metrics.operations,
            limit=self.settings.stall_timeout,
            outage=self.outages.current,
            fail=self.shutdown.fail,
        )

    def _register_pages(self) -> list[PeriodicTask]:
        """Add the pages to the web server; the task takes the samples for the charts of the status page."""
        readiness = self.readiness.reasons
        self.metrics.watch_readiness(readiness)
        metrics = self.metrics if self.settings.metrics_enabled else None
        http.register(
            self.app,
            metrics=metrics,
            readiness=readiness,
            troubles=self.conditions.company_troubles,
            version=VERSION,
        )
        if metrics is None:
            return []
        status = WorkerStatus(
            version=VERSION,
            metrics=metrics,
            sources=list(self.pull_sources.values()),
            agents=self.app.running_agents,
            readiness=readiness,
            in_hand=self._in_hand,
            troubles=self.conditions.company_troubles,
        )
        status_page.register(self.app, status)
        return [PeriodicTask("samples for the page", SNAPSHOT_EVERY, status.history.record)]

    def _in_hand(self) -> Mapping[str, int]:
        """Deliveries in flight of each company of a fleet."""
        shared = [source for spec, source in self.pull_sources.items() if spec.tenant is None]
        return sum((source.in_flight_by_company() for source in shared), Counter())

    def _register_services(self) -> None:
        companies = CompanyStartup(
            specs=self.specs,
            stream=self.reconciler.stream,
            schema=self.bootstrap.schema,
            consumer=self.sources.make_consumer,
            start_source=self.sources.start_source,
            on_company=self.wake_up.notify,
            unserved=self.conditions.unserved,
        )
        startup = Startup(
            steps=[*self.bootstrap.steps(), *self._fleet_steps()],
            companies=companies,
            sources=self.sources,
            conditions=self.conditions,
            fail=self.shutdown.fail,
            on_drained=self.settlement.stop,
        )
        scheduler = Scheduler(self._periodic_tasks(companies), startup.ready, self.wake_up)
        self.app.register_services(scheduler, startup, *([self.fleet] if self.settings.fleet else []))

    def _fleet_steps(self) -> list[StartupStep]:
        return [StartupStep("companies", self.fleet.load)] if self.settings.fleet else []

    def _periodic_tasks(self, companies: CompanyStartup) -> list[PeriodicTask]:
        tasks = PeriodicTasks(
            database=self.database,
            tenants=self.fleet.tenants if self.settings.fleet else companies.companies,
            tables=self.tables.__getitem__,
            api=self.broker,
            specs=self.specs,
            incarnations=[source.incarnation for source in self.pull_sources.values()],
            served=companies.is_served,
            metrics=self.metrics,
            consumer_states=self.consumer_states,
            post_scan=lambda tenant: run_due(self.tables[tenant].post_scan, tenant.company),
            publish=self.settings.postgres_auto_migrate,
        )
        watchdog = PeriodicTask("watchdog", LOOK_EVERY, self.watchdog.look)
        return [*tasks.all(), *self._register_pages(), watchdog]
