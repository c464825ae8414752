"""The tables of docs/settings.md, docs/commands.md and docs/metrics.md, made of the code that they describe.

python -m tools.reference            ends with 1 if a page is out of step (part of `make check`)
python -m tools.reference --write    writes the tables (part of `make format`)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click

from streams.cli import commands
from streams.cli.operations import OperatorCommand
from streams.config.settings import variables
from streams.config.variables import Variable
from streams.monitoring.collectors import Collectors, Declaration

DOCS: Final = Path(__file__).parents[1] / "docs"
# <!-- table: NAME --> ... <!-- end of table -->
_TABLE: Final = re.compile(r"(<!-- table: ([a-z -]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
# The documented metrics, which are numbered, by the first letters of their names.
_DOCUMENTED: Final = ("message_event_service_event", "dlq_", "message_event_service_db_", "onboarding_")
_RUN: Final = "faust -A streams.app"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines)


def settings() -> str:
    """Every variable of the environment."""
    return table(
        ("Variable", "Meaning", "Value", "Default"),
        ((_names(each), each.meaning, _value(each), _default(each.default)) for each in variables()),
    )


def _names(variable: Variable) -> str:
    return f"`{variable.name}`" + "".join(f" (or `{alias}`)" for alias in variable.aliases)


def _value(variable: Variable) -> str:
    return ", ".join(filter(None, (variable.form.unit, variable.form.allowed)))


def _default(text: str | None) -> str:
    if text is None:
        return "must be set"
    return f"`{text.replace(',', '`, `')}`" if text else "none"


def _commands() -> Iterator[click.Command]:
    for name in commands.__all__:
        command = getattr(commands, name)
        if issubclass(command, OperatorCommand):
            yield command.as_click_command()


def command_table() -> str:
    """Every command beside `worker`."""
    worker = (f"`{_RUN} worker`", "Run the processor.")
    return table(("Command", "Does"), [worker, *((_usage(each), _line(each.help)) for each in _commands())])


def _usage(command: click.Command) -> str:
    words = [_argument(each) for each in command.params if isinstance(each, click.Argument)]
    return f"`{' '.join((_RUN, str(command.name), *words))}`"


def _argument(argument: click.Argument) -> str:
    name = f"{argument.human_readable_name.removesuffix('S')}{'…' * (argument.nargs < 0)}"
    return name if argument.required or argument.nargs < 0 else f"[{name}]"


def option_table() -> str:
    """Every option of these commands."""
    return table(
        ("Command", "Option", "Meaning", "Default"),
        (
            (f"`{command.name}`", f"`{_option(option)}`", _line(option.help), _option_default(option))
            for command in _commands()
            for option in command.params
            if isinstance(option, click.Option)
        ),
    )


def _option(option: click.Option) -> str:
    if option.is_flag:
        return option.opts[0]
    return f"{option.opts[0]} {option.make_metavar(click.Context(click.Command('')))}"


def _option_default(option: click.Option) -> str:
    return f"`{option.default:g}`" if isinstance(option.default, (int, float)) and not option.is_flag else ""


def _line(text: str | None) -> str:
    return " ".join((text or "").split())


def _numbered() -> list[tuple[str, Declaration]]:
    """Every metric, the documented ones with their number."""
    declared = Collectors("").declared
    documented = [each for each in declared if each.name.startswith(_DOCUMENTED)]
    numbers = {each.name: str(number) for number, each in enumerate(documented, 1)}
    return [(numbers.get(each.name, ""), each) for each in declared]


def metrics(prefix: str) -> str:
    """The metrics whose names begin so."""
    declared = [(number, each) for number, each in _numbered() if each.name.startswith(prefix)]
    labels = [", ".join(f"`{label}`" for label in each.labels) for _, each in declared]
    rows = [
        (number, f"`{each.name}`", each.kind, named, each.meaning)
        for (number, each), named in zip(declared, labels, strict=True)
    ]
    return table(("#", "Metric", "Type", "Labels", "Meaning"), rows)


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings,
    "commands": command_table,
    "options": option_table,
    "event metrics": partial(metrics, "message_event_service_event"),
    "dead-letter metrics": partial(metrics, "dlq_"),
    "database metrics": partial(metrics, "message_event_service_db_"),
    "onboarding metrics": partial(metrics, "onboarding_"),
    "own metrics": partial(metrics, "daisi_"),
}
PAGES: Final = ("settings.md", "commands.md", "metrics.md")


def renewed(page: str) -> str:
    """The page with its tables as the code has them. Raises `KeyError` for a table that is not known."""
    return _TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def pages() -> Iterator[tuple[Path, str]]:
    """Path and text of every page with such tables."""
    for name in PAGES:
        yield DOCS / name, renewed((DOCS / name).read_text(encoding="utf-8"))


def keep_in_step(documents: Iterable[tuple[Path, str]], arguments: Sequence[str]) -> int:
    """Say which files are not what the code says, or write them (`--write`); returns the exit code."""
    wanted = dict(documents)
    stale = {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text
    }
    if arguments == ["--write"]:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8")
    elif stale:
        names = ", ".join(path.name for path in stale)
        print(f"out of step with the code: {names}; `make format` writes what is made of it", file=sys.stderr)
        return 1
    print(f"{', '.join(path.name for path in wanted)}: in step with the code")
    return 0


if __name__ == "__main__":
    sys.exit(keep_in_step(pages(), sys.argv[1:]))
