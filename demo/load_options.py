"""The options of the load generator; what is wrong with them is said with the option's name."""

from __future__ import annotations

import argparse
import math
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from events.subjects import EVENT_TYPES
from streams.config.names import COMPANIES, SERVERS
from streams.config.scalars import PORT, duration, number
from testkit.account import AGENTS

Mix = Mapping[str, float]

# A usual working day: mostly messages and what becomes of them; history comes when a phone is linked.
DEFAULT_MIX: Final[Mix] = {
    "v1.messages.upsert": 50,
    "v1.messages.update": 20,
    "v1.chats.upsert": 7,
    "v1.chats.update": 12,
    "v1.contacts.upsert": 5,
    "v1.contacts.update": 2,
    "v1.connection.update": 1,
    "v1.history.messages": 1,
    "v1.history.chats": 1,
    "v1.history.contacts": 1,
}
_LOCAL: Final = "nats://127.0.0.1:4222"
_EPILOG: Final = (
    "It writes into the rows of the companies that it names: never name a company that is in use. "
    "Ends with 0 only if JetStream confirmed every event."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to send. `rate` is events a second over all companies, 0: as fast as confirmed; times are seconds.

    Of `duration` and `events` at most one is set; with neither it runs until it is stopped.
    """

    rate: float
    duration: float | None
    events: int | None
    companies: tuple[str, ...]
    mix: Mix
    invalid: float
    agents: int
    seed: int
    window: int
    nats_url: tuple[str, ...]
    metrics_port: int
    wait: float

    @property
    def planned(self) -> int | None:
        """How many events that makes, if it is known before."""
        if self.events is not None:
            return self.events
        if self.duration is None or not self.rate:
            return None
        # A product such as 0.1 * 30 is a little off.
        return max(1, math.ceil(self.rate * self.duration - 1e-6))


def parse(arguments: Sequence[str]) -> Options:
    """The options. Raises `SystemExit` with status 2, after a line on stderr that names the wrong option."""
    given = _parser().parse_args(arguments)
    return Options(**{**vars(given), "companies": tuple(tenant.company for tenant in given.companies)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo.load",
        description="Publish load to JetStream, confirmed event by event.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )

    def add(name: str, read: Callable[[str], Any], meaning: str, to: Any = parser, **more: Any) -> None:
        to.add_argument(name, type=_named(read), help=meaning, **more)

    weights = ",".join(f"{short(name)}={weight:g}" for name, weight in DEFAULT_MIX.items())
    url = os.environ.get("NATS_URL") or _LOCAL
    add("--companies", COMPANIES, "whose events, separated by commas", required=True, metavar="A,B")
    rate = _decimal(1e6, "events a second")
    add("--rate", rate, "events a second over all companies, 0: as fast as confirmed (100)", default=100.0)
    ends = parser.add_mutually_exclusive_group()
    add("--duration", _seconds, "such as 90s or 5m, or seconds", ends)
    add("--events", number(1, 10**12), "how many; without either, until Ctrl-C", ends)
    add("--mix", mix, f"weights of the event types ({weights})", default=DEFAULT_MIX, metavar="TYPE=N,...")
    share = _decimal(1.0, "a share")
    add("--invalid", share, "share of events that can never be stored, 0 to 1 (0)", default=0.0)
    add("--agents", number(1, 10_000), f"agents of each company ({AGENTS})", default=AGENTS)
    seed = number(0)
    add("--seed", seed, "same seed: same rows (each run another one)", default=random.randrange(2**31))
    add("--window", number(1, 100_000), "events without confirmation at a time (256)", default=256)
    add("--nats-url", SERVERS, "NATS servers (NATS_URL, else the local one)", default=url, metavar="URL")
    add("--metrics-port", PORT, "port of /metrics, 0: any free one (9091)", default=9091)
    add("--wait", _seconds, "for NATS and the streams to be there, at most (30s)", default=30.0)
    return parser


def short(event_type: str) -> str:
    """An event type without its version, as operators write it."""
    return event_type.removeprefix("v1.")


def mix(text: str) -> Mix:
    """The weights in `messages.upsert=70,messages.update=30`; what is not named is not sent.

    Raises `ValueError` with what is wrong and what is expected.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = (piece.strip() for piece in part.partition("="))
        event_type = f"v1.{short(name)}"
        if event_type not in EVENT_TYPES:
            raise ValueError(f"unknown event type {name!r}: expected {', '.join(map(short, EVENT_TYPES))}")
        if event_type in weights:
            raise ValueError(f"names {name!r} twice: expected each event type once")
        weights[event_type] = _decimal(1e9, f"a weight of {name!r}")(weight)
    if not any(weights.values()):
        raise ValueError("all weights are 0: expected at least one above 0")
    return {event_type: weight for event_type, weight in weights.items() if weight}


def _named(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Lets argparse show what a parser has to say, behind the option's name."""

    def parse(text: str) -> Any:
        try:
            return read(text.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _seconds(text: str) -> float:
    seconds = duration()(f"{text}s" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else text)
    if seconds <= 0:
        raise ValueError(f"{text!r} is out of range: expected more than 0 s")
    return seconds


def _decimal(most: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}", text) else math.inf
        if value > most:
            raise ValueError(f"{text!r} is not {what}: expected a number from 0 to {most:.0f}")
        return value

    return parse
