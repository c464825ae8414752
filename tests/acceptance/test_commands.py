"""The commands beside `worker`, run as an operator runs them (RUN-2)."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import nats
import pytest
from nats.js.api import ConsumerConfig
from nats.js.errors import NotFoundError

from streams.version import VERSION
from testkit.servers import NatsServer, free_port
from testkit.worker import environment
from tests.acceptance.company_probe import CompanyProbe
from tests.acceptance.conftest import visited
from tests.programs import command

Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(company: str, nats_url: str, postgres_dsn: str) -> Run:
    """Runs a command for the test's company."""

    def run(*arguments: str, nats_url: str = nats_url) -> CompletedProcess[str]:
        return command(*arguments, env=environment([company], nats_url, postgres_dsn))

    return run


def test_version_says_the_version(run: Run) -> None:
    done = run("version")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, VERSION, "")


async def test_migrate_makes_the_schema_and_may_be_repeated(run: Run, probe: CompanyProbe) -> None:
    for _ in range(2):
        done = run("migrate")
        assert done.returncode == 0, done.stderr
        assert probe.tenant.schema in done.stdout
    assert await probe.count("messages") == 0


async def test_migrate_without_a_database_ends_with_one_line(company: str, nats_url: str) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{free_port()}/postgres"
    done = command("migrate", env=environment([company], nats_url, dsn))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


async def test_topology_only_shows_until_it_is_told_to_apply(
    run: Run, company: str, postgres_dsn: str
) -> None:
    with NatsServer() as server:
        client = await nats.connect(server.url)
        async with visited(company, client, postgres_dsn) as probe:
            shown = run("topology", nats_url=server.url)
            assert shown.returncode == 0, shown.stderr
            for name in (
                "wa_events_stream",
                "wa_history_events_stream",
                "dlq_stream",
                f"wa_realtime_{company}",
            ):
                assert name in shown.stdout
            with pytest.raises(NotFoundError):
                await probe.js.stream_info("wa_events_stream")

            applied = run("topology", "--apply", nats_url=server.url)
            assert applied.returncode == 0, applied.stderr
            assert (await probe.consumer()).config.durable_name == f"wa_realtime_{company}"
            assert "nothing to change" in run("topology", nats_url=server.url).stdout
        await client.close()


async def test_topology_drops_the_old_durables_only_when_told_to(run: Run, probe: CompanyProbe) -> None:
    run("topology", "--apply")
    old = ConsumerConfig(
        durable_name=f"wa_listener_{probe.company}",
        deliver_subject=probe.nc.new_inbox(),
        filter_subject=probe.tenant.subject("v1.chats.upsert"),
    )
    await probe.js.add_consumer("wa_events_stream", old)
    assert run("topology", "--apply").returncode == 0
    assert await probe.js.consumer_info("wa_events_stream", f"wa_listener_{probe.company}")
    dropped = run("topology", "--drop-old")
    assert dropped.returncode == 0, dropped.stderr
    assert f"wa_listener_{probe.company}" in dropped.stdout
    with pytest.raises(NotFoundError):
        await probe.js.consumer_info("wa_events_stream", f"wa_listener_{probe.company}")
