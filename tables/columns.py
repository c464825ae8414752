"""How the columns of a table follow its events: declared once a table, for inserts, merges and updates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tables.last_writer_wins import MergeResult, merge
from tables.mutations import AccountRow, ChatMutation, ChatRow, MessageMutation, MessageRow, WriteRejection
from tables.queries import StoredRow

Written = TypeVar("Written", bound=MessageMutation | ChatMutation | AccountRow)
Row = TypeVar("Row", MessageRow, ChatRow)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that events write, each by its name in the statements, the table and the mutations.

    `versioned`: the newest event's value counts; with the value of a new row that no event feeds. `fixed`: stored
    once, then only filled where empty. `explicit`: versioned ones whose empty value may be fed as well.
    """

    versioned: Mapping[str, str | int | None]
    fixed: tuple[str, ...] = ()
    explicit: tuple[str, ...] = ()

    def merge(
        self, group: Sequence[Written], stored: Mapping[str, Any] | None = None, filled: Collection[str] = ()
    ) -> MergeResult:
        """The versioned columns of a row, for the mutations of its key: of a new one, or those to change.

        A stored row has the `last_metadata` `stored`, and its `filled` columns are not empty.
        """
        events = [(mutation.stamp, self._fed(mutation)) for mutation in group]
        return merge(events, stored, filled, self.explicit)

    def first_filled(self, rows: Sequence[MessageRow | ChatRow]) -> dict[str, Any]:
        """The first value that is not empty, of each fixed column; nothing without rows."""
        if not rows:
            return {}
        return {
            column: next((value for row in rows if (value := getattr(row, column))), getattr(rows[0], column))
            for column in self.fixed
        }

    def new_row(self, rows: Sequence[Row], values: Mapping[str, Any]) -> Row:
        """The row to insert: its fixed columns from `rows`, the versioned ones from `values`."""
        row = rows[0]
        versioned = {
            column: values.get(column, empty)
            for column, empty in self.versioned.items()
            if column in row._fields
        }
        return row._replace(**self.first_filled(rows), **versioned)

    def _fed(self, mutation: MessageMutation | ChatMutation | AccountRow) -> dict[str, Any]:
        """The versioned columns that an event has a value for."""
        return {
            column: value
            for column in self.versioned
            if (value := getattr(mutation, column, None)) not in ("", None)
        }


def by_key(mutations: Iterable[Written], key: Callable[[Written], str]) -> dict[str, list[Written]]:
    """The mutations of each key, in the order in which they came."""
    groups: dict[str, list[Written]] = {}
    for mutation in mutations:
        groups.setdefault(key(mutation), []).append(mutation)
    return groups


def accepted(
    record: StoredRow | None, group: Sequence[Written]
) -> tuple[Sequence[Written], list[WriteRejection]]:
    """Those of `group` whose row is there, and of their company or of none; and the rejections of the others."""
    if record is None:
        return [], [WriteRejection(mutation.ref, "not_found") for mutation in group]
    owner = record["company_id"]
    others = [mutation for mutation in group if owner not in (mutation.company_id, "", None)]
    if not others:
        return group, []
    rejections = [WriteRejection(mutation.ref, "company") for mutation in others]
    return [mutation for mutation in group if mutation not in others], rejections
