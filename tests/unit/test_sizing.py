"""Sizing: the formulas at points worked out by hand, and what must hold of every plan and simulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from events.subjects import Tenant
from streams.config.settings import variables
from streams.jetstream.specs import TopologyConfig, consumers
from tools.sizing import check, formulas, scenarios
from tools.sizing import plan as planning
from tools.sizing.__main__ import main
from tools.sizing.costs import MEASURED, Cost, Mix, blend, loads_from, others, speeds_from
from tools.sizing.options import options
from tools.sizing.parts import Stretch
from tools.sizing.plan import Cell, Demand, Group, plan
from tools.sizing.simulation import Simulation

SMALL = Demand(companies=6, rate=600.0, companies_a_worker=3, database_cores=2, ack_wait=5.0)


def _cell() -> Cell:
    return plan(SMALL).cells[0]


class TestFormulas:
    def test_replicas_at_points_worked_out_by_hand(self) -> None:
        # 13,359 events of 60 us are 0.80 cores: two keep below 60 %, and one alone below 85 %.
        assert formulas.cores(13_359, 60) == pytest.approx(0.80154)
        assert formulas.replicas(0.80154, headroom=0.6, survive=0.85) == 2
        assert formulas.replicas(0.86, headroom=0.6, survive=0.85) == 3
        assert formulas.replicas(1.8, headroom=0.6, survive=0.85) == 4
        assert formulas.replicas(0.01, headroom=0.6, survive=0.85) == 2

    def test_an_error_in_the_last_digit_costs_no_worker(self) -> None:
        assert formulas.up(0.1 * 3 / 0.1) == 3

    def test_connections_count_a_rollout(self) -> None:
        assert formulas.connections(8, 10, groups=4) == 120
        assert formulas.workers_for(500, reserve=20, pool=10) == 48

    def test_a_source_holds_two_batches(self) -> None:
        assert formulas.ack_pending(3, 500, delayed=100) == 3100

    def test_few_events_come_alone_and_many_in_batches(self) -> None:
        assert formulas.batches([1.0], 0.001) == pytest.approx(1 / 1.001)
        assert formulas.batches([1_000_000.0], 0.01) == pytest.approx(100, rel=0.001)

    def test_disk(self) -> None:
        assert formulas.disk(1000, 1000, days=30) == pytest.approx(2.592)

    def test_batches_share_the_core_with_the_events(self) -> None:
        assert formulas.cycle(50, 500, load=0.5) == pytest.approx(0.05)
        with pytest.raises(ValueError, match="one core"):
            formulas.cycle(50, 500, load=1.0)

    def test_the_numbers_of_the_processor_are_those_used_here(self) -> None:
        defaults, demand = {each.name: each.default for each in variables()}, Demand()
        topology = TopologyConfig()
        assert defaults["NATS_REALTIME_BATCHSIZE"] == str(demand.realtime_batch)
        assert defaults["NATS_HISTORICAL_BATCHSIZE"] == str(demand.history_batch)
        assert topology.realtime_max_age_days == topology.historical_max_age_days == demand.stream_days
        assert topology.realtime_ack_wait == demand.ack_wait
        assert defaults["POSTGRES_POOL_SIZE"] == str(demand.pool)
        assert len(consumers(topology, Tenant("CompanyA"))) == formulas.CONSUMERS_OF_A_COMPANY


class TestCosts:
    def test_shares_of_a_mix_add_up(self) -> None:
        assert sum(Mix(0.6, 0.1, 0.05, 0.2).weights().values()) == pytest.approx(1)

    def test_messages_and_others_make_the_mixed_load(self) -> None:
        mixed = blend(MEASURED, Mix(messages=0.7, new_phones=0, repeats=0, history=0))
        assert mixed == pytest.approx(MEASURED["mixed"])
        assert others(MEASURED).worker == pytest.approx((60 - 0.7 * 51) / 0.3)

    def test_results_of_the_bench_take_the_place_of_the_constants(self, tmp_path: Path) -> None:
        runs = [{"per_s": 9.0, "cpu_us": 99.0}, {"per_s": 10.0, "cpu_us": 40.0, "postgres_cpu_us": 20.0}]
        lines = {
            "realtime": {"worker": runs, "bare": [{"per_s": 50.0}]},
            "start": {"worker": [{"seconds": 2.0}]},
        }
        file = tmp_path / "results.json"
        file.write_text(json.dumps({"runs": {"matrix": {"lines": lines}}}), encoding="utf-8")
        assert loads_from(file)["realtime"] == MEASURED["realtime"]._replace(worker=40.0, postgres=20.0)
        assert loads_from(file)["mixed"] == MEASURED["mixed"]
        assert speeds_from(file) == {"realtime": 10.0}

    def test_without_results_the_constants_count(self, tmp_path: Path) -> None:
        assert loads_from(tmp_path / "results.json") == MEASURED


class TestPlan:
    def test_every_company_is_in_one_group_and_every_group_in_one_cell(self) -> None:
        demand = Demand(companies=130, rate=20_000)
        made = plan(demand)
        rates = sorted(rate for cell in made.cells for rate in cell.rates)
        assert rates == sorted(planning.zipf(130, 20_000, 1.0))
        assert all(len(group.rates) <= demand.companies_a_worker for group in made.groups)
        assert min(group.replicas for group in made.groups) == 2

    def test_a_company_with_more_than_a_groups_share_is_alone(self) -> None:
        groups = planning.grouped([70.0, 10.0, 10.0, 10.0], most=2)
        assert [group.rates for group in groups] == [[70.0], [10.0, 10.0], [10.0]]

    def test_more_events_never_need_fewer_of_anything(self) -> None:
        plans = [plan(Demand(companies=200, rate=float(rate))) for rate in range(1_000, 200_000, 9_000)]
        for counted in (
            [made.workers for made in plans],
            [len(made.cells) for made in plans],
            [made.nats_servers for made in plans],
        ):
            assert counted == sorted(counted)
            assert counted[-1] > counted[0]

    def test_each_limit_can_be_what_asks_for_more_databases(self) -> None:
        wide = Demand(companies=200, rate=1000.0, stream_rate=1e9)
        one = plan(wide)
        assert (len(one.cells), one.databases_because) == (1, "one is enough")
        for limit, tight in (
            ("connections", Demand(companies=200, rate=1000.0, max_connections=80)),
            ("stream", Demand(companies=200, rate=1000.0, stream_rate=600.0)),
            ("WAL", Demand(companies=200, rate=1000.0, wal_mb=3.0)),
            ("disk", Demand(companies=200, rate=1000.0, database_tb=3.0)),
            ("processor", Demand(companies=200, rate=1000.0, database_cores=1)),
        ):
            made = plan(tight)
            assert limit in made.databases_because
            assert len(made.cells) > 1

    def test_a_limit_that_no_division_can_keep_is_named(self) -> None:
        assert (
            plan(Demand(companies=4, rate=1000.0, stream_rate=10.0)).databases_because == "stream: exceeded"
        )


class TestSimulation:
    def test_no_event_is_lost_or_made_up(self) -> None:
        simulation = Simulation(SMALL, _cell(), seed=3)
        simulation.run(3.0)
        assert simulation.arrived > 1000
        assert simulation.backlog == simulation.arrived - simulation.served
        waiting = sum(source.queued for source in simulation.sources)
        held = sum(batch.count for worker in simulation.workers for batch in worker.holds)
        assert simulation.backlog == waiting + held

    def test_the_same_seed_is_the_same_course(self) -> None:
        once, again, other = (
            scenarios.steady(SMALL, _cell(), name="", seconds=2.0, seed=seed) for seed in (1, 1, 2)
        )
        assert once == again
        assert once != other

    def test_an_outage_of_the_database_loses_nothing_and_is_made_up_for(self) -> None:
        away = _scenario("PostgreSQL")
        outcome = scenarios.play(SMALL, away, seed=1)
        assert outcome.normal_after is not None
        assert outcome.most >= 600 * 3 * 0.7
        assert outcome.longest >= 2.9
        assert outcome.left < 600 * 0.1 + 1

    def test_what_the_database_worked_on_is_stored_when_it_is_back(self) -> None:
        simulation = Simulation(SMALL, Cell([Group([0.0], replicas=2)]), seed=1)
        simulation.backlog_of(simulation.sources[0], 20_000)
        while not simulation.database.working:
            simulation.run(simulation.now + 0.001)
        before = simulation.served
        simulation.stop_database()
        simulation.run(3.0)
        assert simulation.served - before <= 2 * SMALL.realtime_batch  # what was being written at that moment
        simulation.start_database()
        simulation.run(10.0)
        assert simulation.served == simulation.arrived == 20_000

    def test_what_a_killed_worker_held_comes_again_after_the_ack_wait(self) -> None:
        demand, cell = SMALL, Cell([Group([0.0], replicas=2)])
        simulation = Simulation(demand, cell, seed=1)
        simulation.backlog_of(simulation.sources[0], 20_000)
        simulation.run(0.05)
        victim = next(worker for worker in simulation.workers if worker.holds)
        held = sum(batch.count for batch in victim.holds)
        simulation.kill(victim, back_after=100.0)
        simulation.run(4.9)
        assert simulation.served == 20_000 - held
        simulation.run(15.0)
        assert simulation.served == simulation.arrived == 20_000
        assert simulation.waits["others"].percentile(1.0, 0, 1) > 0.9 * demand.ack_wait

    def test_other_companies_hardly_notice_a_burst_of_one(self) -> None:
        outcome = scenarios.play(SMALL, _scenario("a company among"), seed=1)
        assert outcome.others_p99 is not None
        assert outcome.others_p99 < 1.0
        assert outcome.normal_after is not None

    def test_a_batch_takes_the_oldest_and_leaves_the_rest(self) -> None:
        source = Simulation(SMALL, _cell(), seed=1).sources[0]
        source.put(Stretch(0.0, 1.0, 400))
        source.put(Stretch(1.0, 2.0, 400))
        assert source.take() == [Stretch(0.0, 1.0, 400), Stretch(1.0, 1.25, 100)]
        assert source.take() == [Stretch(1.25, 2.0, 300)]

    def test_a_worker_drains_as_fast_as_was_measured(self) -> None:
        slowest, fastest = check.QUIET["realtime"]
        assert slowest * 0.9 < check.drain(Demand(), MEASURED["realtime"]) < fastest * 1.1

    def test_an_event_at_a_low_rate_takes_as_long_as_was_measured(self) -> None:
        p50 = check.latency(Demand(), MEASURED["realtime"], 100, seconds=10.0)
        assert p50 == pytest.approx(check.QUIET_P50, rel=0.15)

    def test_shared_cores_slow_down_only_if_they_are_too_few(self) -> None:
        cost = Cost(60, 30, 10, 0, 0, 0)
        assert check.squeeze(cost, cores=2) == 1
        assert check.squeeze(cost, cores=1) == pytest.approx(100 / 60)


def _scenario(word: str) -> scenarios.Scenario:
    listed = scenarios.scenarios(SMALL, plan(SMALL), import_rows=2000, outage=3.0, restart=2.0)
    return next(scenario for scenario in listed if word in scenario.name)


class TestCommand:
    def test_prints_the_plan(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--companies", "20", "--rate", "500", "--no-simulation"]) == 0
        printed = capsys.readouterr().out
        assert "| PostgreSQL primaries " in printed
        assert "| Cell |" in printed

    def test_prints_a_row_for_each_scenario(self, capsys: pytest.CaptureFixture[str]) -> None:
        given = "--companies 2 --rate 20 --seconds 1 --import-rows 2000 --outage 1 --ack-wait 1 --restart 1"
        assert main(given.split()) == 0
        printed = capsys.readouterr().out
        assert "never" not in printed
        assert sum("a company imports 2,000 rows" in line for line in printed.splitlines()) == 1

    def test_costs_can_be_given(self) -> None:
        assert options(["--cost-worker", "10"]).demand.cost.worker == 10

    @pytest.mark.parametrize(
        "wrong", ["--rate=0", "--rate=nan", "--companies=1.5", "--messages=2", "--headroom=1"]
    )
    def test_a_wrong_number_is_refused(self, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            options([wrong])
        assert "error:" in capsys.readouterr().err
