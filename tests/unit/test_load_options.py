"""The options of the load generator: what they mean, and that a wrong one is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from demo.load_options import DEFAULT_MIX, Options, parse


def options(*arguments: str) -> Options:
    return parse(["--companies", "KopiNusa01", *arguments])


def test_what_is_not_said_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://one:4222, nats://two:4222")
    given = options()
    assert (given.rate, given.duration, given.events, given.planned) == (100.0, None, None, None)
    assert (given.companies, given.mix, given.invalid) == (("KopiNusa01",), DEFAULT_MIX, 0.0)
    assert (given.metrics_port, given.window) == (9091, 256)
    assert given.nats_url == ("nats://one:4222", "nats://two:4222")


def test_an_option_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://one:4222")
    assert options("--nats-url", "nats://two:4222").nats_url == ("nats://two:4222",)


def test_a_run_without_a_seed_has_one_of_its_own() -> None:
    assert options().seed != options().seed
    assert options("--seed", "7").seed == 7


@pytest.mark.parametrize(
    ("arguments", "planned"),
    [
        (("--events", "70", "--rate", "0"), 70),
        (("--duration", "30", "--rate", "0.1"), 3),
        (("--duration", "1m30s", "--rate", "10"), 900),
        (("--duration", "500ms", "--rate", "1"), 1),
        (("--duration", "5s", "--rate", "0"), None),
    ],
)
def test_how_many_events_that_makes(arguments: tuple[str, ...], planned: int | None) -> None:
    assert options(*arguments).planned == planned


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--rate", "fast", "'fast' is not events a second"),
        ("--rate", "-1", "'-1' is not events a second"),
        ("--rate", "inf", "expected a number from 0"),
        ("--duration", "0", "expected more than 0 s"),
        ("--duration", "soon", "is not a duration"),
        ("--events", "0", "expected an integer from 1"),
        ("--companies", "a.b", "contains whitespace or one of"),
        ("--companies", "A,a", "differ only in case"),
        ("--companies", "A,,B", "is empty"),
        ("--mix", "messages.insert=1", "unknown event type 'messages.insert': expected connection.update"),
        ("--mix", "messages.upsert", "is not a weight"),
        ("--mix", "messages.upsert=many", "'many' is not a weight of 'messages.upsert'"),
        ("--mix", "messages.upsert=1,v1.messages.upsert=2", "twice"),
        ("--mix", "messages.upsert=0", "all weights are 0"),
        ("--mix", "", "unknown event type ''"),
        ("--invalid", "1.01", "is not a share: expected a number from 0 to 1"),
        ("--agents", "0", "expected an integer from 1"),
        ("--seed", "x", "expected an integer from 0"),
        ("--window", "0", "expected an integer from 1"),
        ("--metrics-port", "70000", "expected an integer from 0 to 65535"),
        ("--nats-url", "http://nats", "is not a NATS URL"),
        ("--wait", "-", "is not a duration"),
    ],
)
def test_a_wrong_option_is_named_with_what_was_expected(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        options(option, value)
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: " in error
    assert said in error


def test_a_wrong_nats_url_is_not_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--nats-url", "http://user:secret@nats")
    assert "secret" not in capsys.readouterr().err


def test_companies_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A default could be a company in use."""
    with pytest.raises(SystemExit):
        parse([])
    assert "--companies" in capsys.readouterr().err.splitlines()[-1]


def test_a_duration_and_a_number_of_events_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--events", "5", "--duration", "5")
    assert "argument --duration: not allowed with argument --events" in capsys.readouterr().err


def test_the_help_warns_of_companies_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    assert ended.value.code == 0
    assert "never name a company that is in use" in " ".join(capsys.readouterr().out.split())


def test_the_load_generator_needs_nothing_that_only_developers_have() -> None:
    """Its image holds the worker's packages."""
    program = "import sys, demo.load; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    foreign = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert {"demo", "nats"} <= foreign
    assert not foreign & {"psutil", "orjson", "pytest", "hypothesis"}
