"""`exhausted`, `exhausted-show`, `exhausted-replay`, `exhausted-discard`: the commands for exhausted events."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from faust.cli import argument, option

from events.errors import BrokerError
from streams.cli import formatting
from streams.cli.exhausted_events import CommandFailed, ExhaustedEventService, Outcome, Result, Target, paced
from streams.cli.operations import OperatorCommand
from streams.config.scalars import duration
from tables.exhausted import Search

_BIGGEST_ID: Final = 2**63 - 1

_COMPANY: Final = option("--company", help="One of COMPANY_ID, or of the database with COMPANY_ID=*.")
_ERROR: Final = option("--error", help="Only those whose error has this text in it, in any case.")
_OLDER: Final = option("--older-than", help="Only those given up at least so long ago, such as 30m or 48h.")
_NEWER: Final = option("--newer-than", help="Only those given up at most so long ago.")
_BY: Final = option("--by", help="Who does it, for the row's notes; the user of this process if not given.")
_IDS: Final = argument("ids", nargs=-1, type=int)


class exhausted(OperatorCommand):  # noqa: N801 - Faust takes the command's name from the class
    """List events that were given up for good and are not resolved, the newest first."""

    options = [  # noqa: RUF012 - Faust's own way
        _COMPANY,
        _ERROR,
        _OLDER,
        _NEWER,
        option("--resolved", "state", flag_value="resolved", help="Those that are resolved instead."),
        option("--any", "state", flag_value="any", help="Resolved or not."),
        option("--limit", type=int, default=50, show_default=True, help="At most so many."),
    ]

    async def run(
        self,
        company: str | None,
        error: str | None,
        older_than: str | None,
        newer_than: str | None,
        state: str | None,
        limit: int,
    ) -> None:
        """See the class."""
        resolved = None if state == "any" else state == "resolved"
        search = _search(error, older_than, newer_than)._replace(resolved=resolved)
        if limit < 1:
            raise CommandFailed(f"--limit {limit}: expected 1 or more")
        async with self.operations.storage():
            service = await self.operations.exhausted_events()
            found = await service.find(service.of(company), search, limit + 1)
        self.say((formatting.as_json if self.json else formatting.table)(found[:limit]))
        if len(found) > limit:
            self.say(f"these are the newest {limit}; --limit shows more", file=self.stderr)


class exhausted_show(OperatorCommand):  # noqa: N801
    """Show all of one exhausted event; its payloads only when asked for."""

    options = [  # noqa: RUF012
        argument("row", metavar="ID", type=int),
        _COMPANY,
        option("--payload/--no-payload", default=False, help="Show the envelope and the event, too."),
    ]

    async def run(self, row: int, company: str | None, payload: bool) -> None:
        """See the class."""
        ids = _rows([row])
        async with self.operations.storage():
            service = await self.operations.exhausted_events()
            [target] = _targets(service, company, ids)
            found = await service.read(target)
        self.say((formatting.fields_as_json if self.json else formatting.fields)(found, payload=payload))


class exhausted_replay(OperatorCommand):  # noqa: N801
    """Publish exhausted events again as dead letters, by id or all that are not resolved.

    They keep their versions and overwrite nothing newer.
    """

    options = [  # noqa: RUF012
        _IDS,
        option("--all/--not-all", "everything", default=False, help="All that are not resolved."),
        _COMPANY,
        _ERROR,
        _OLDER,
        _NEWER,
        option("--rate", type=float, default=50.0, show_default=True, help="At most so many a second."),
        _BY,
    ]

    async def run(
        self,
        ids: tuple[int, ...],
        everything: bool,
        company: str | None,
        error: str | None,
        older_than: str | None,
        newer_than: str | None,
        rate: float,
        by: str | None,
    ) -> None:
        """See the class."""
        who = _who(by)
        search = _search(error, older_than, newer_than)
        if bool(ids) == everything:
            raise CommandFailed("expected the ids of rows, or --all")
        if ids and search != Search():
            raise CommandFailed("--error, --older-than and --newer-than go with --all, not with ids")
        if not 0 < rate <= 1_000_000:
            raise CommandFailed(f"--rate {rate:g}: expected a number above 0")
        rows = _rows(ids) if ids else []
        async with self.operations.storage():
            service = await self.operations.exhausted_events()
            targets = _targets(service, company, rows) if rows else []
            if everything:
                found = await service.find(service.of(company), search._replace(resolved=False), None)
                targets = [Target(tenant, row.id) for tenant, row in reversed(found)]
            if not targets:
                return self.say("nothing to replay")
            await self._replay(service, targets, rate, by=who, open_only=everything)

    async def _replay(
        self,
        service: ExhaustedEventService,
        targets: Sequence[Target],
        rate: float,
        *,
        by: str,
        open_only: bool,
    ) -> None:
        report = _Report(self, "replayed", len(targets))
        async with self.operations.connected() as broker:
            async for target in paced(targets, rate):
                try:
                    report.add(await service.replay(target, by=by, broker=broker, open_only=open_only))
                except BrokerError as error:
                    raise CommandFailed(
                        f"{target.name} is not confirmed and stays as it is, like those after it: {error}"
                    ) from error
        report.end()


class exhausted_discard(OperatorCommand):  # noqa: N801
    """Resolve exhausted events without storing them; the rows stay, with who, when and why in their notes."""

    options = [  # noqa: RUF012
        _IDS,
        _COMPANY,
        option("--reason", help="Why, for the row's notes; must be given."),
        option("--yes/--no", "sure", default=False, help="Do it; without this nothing is changed."),
        _BY,
    ]

    async def run(
        self, ids: tuple[int, ...], company: str | None, reason: str | None, sure: bool, by: str | None
    ) -> None:
        """See the class."""
        who, rows = _who(by), _rows(ids)
        why = " ".join((reason or "").split())
        if not why:
            raise CommandFailed("nothing discarded: --reason must say why")
        async with self.operations.storage():
            service = await self.operations.exhausted_events()
            targets = _targets(service, company, rows)
            if not sure:
                names = ", ".join(target.name for target in targets)
                raise CommandFailed(f"nothing discarded: --yes confirms that {names} will never be stored")
            report = _Report(self, "discarded", len(targets))
            for target in targets:
                report.add(await service.discard(target, by=who, reason=why))
        report.end()


class _Report:
    """Prints the result of each row; for a single row it is the only line."""

    def __init__(self, command: OperatorCommand, wanted: Outcome, rows: int) -> None:
        self._command = command
        self._wanted = wanted
        self._alone = rows == 1
        self._counts: Counter[str] = Counter()

    def add(self, result: Result) -> None:
        """Print it. Raises `CommandFailed` for a single row with another result than wanted."""
        self._counts[result.outcome] += 1
        as_wanted = result.outcome == self._wanted
        if self._alone and not as_wanted:
            raise CommandFailed(result.text)
        self._command.say(result.text, file=self._command.stdout if as_wanted else self._command.stderr)

    def end(self) -> None:
        """Sum up. Raises `CommandFailed` unless all are as wanted."""
        summary = ", ".join(f"{count} {outcome}" for outcome, count in self._counts.items())
        if set(self._counts) != {self._wanted}:
            raise CommandFailed(summary)
        if not self._alone:
            self._command.say(summary)


def _rows(ids: Iterable[int]) -> list[int]:
    """The ids, each once. Raises `CommandFailed` for what cannot be an id."""
    rows = list(dict.fromkeys(ids))
    if not rows:
        raise CommandFailed("expected the ids of rows")
    for row in rows:
        if not 0 < row <= _BIGGEST_ID:
            raise CommandFailed(f"{row} is no id: expected a number from 1")
    return rows


def _targets(service: ExhaustedEventService, company: str | None, rows: Iterable[int]) -> list[Target]:
    """The rows with their company. Raises `CommandFailed` if it is not clear whose they are."""
    tenant = service.one(company)
    return [Target(tenant, row) for row in rows]


def _search(error: str | None, older_than: str | None, newer_than: str | None) -> Search:
    return Search(error, _seconds("--older-than", older_than), _seconds("--newer-than", newer_than))


def _seconds(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else duration()(text)
    except ValueError as error:
        raise CommandFailed(f"{name} {error}") from error


def _who(by: str | None) -> str:
    """The name for the notes, on one line. Raises `CommandFailed` for a blank one."""
    if by is None:
        try:
            return getpass.getuser()
        except (OSError, KeyError):  # in a container, a user may be no more than a number
            return f"user {os.getuid()}"
    if not by.split():
        raise CommandFailed("--by is blank: expected a name")
    return " ".join(by.split())
