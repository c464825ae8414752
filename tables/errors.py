"""Errors of PostgreSQL, by what to do about them.

StorageError
├─ Unavailable             the server, the connection or the whole schema: keep the batch, back off, retry
├─ QueryTimeout            a statement, a lock or the pool took too long: back off, then bisect
├─ SerializationFailure    a deadlock or a stale plan: retry at once
├─ DataError               perhaps the data of an event: bisect, dead-letter the poison event
└─ DatabaseError           anything else about a statement: bisect, retry the event later

None of these alone makes an event a poison event: see `agents.outage_probe`. The reason for each row of `KINDS` is in
docs/specification/database-errors.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final

import asyncpg


class StorageError(Exception):
    """The database did not do what was asked.

    `sqlstate` is None when no server answered. `objects` are the table, column, constraint and data type that the
    server named. `server_text` is its message: it may hold values of a row, so it is no part of our own text.
    """

    def __init__(
        self,
        message: str,
        sqlstate: str | None = None,
        *,
        objects: Mapping[str, str] | None = None,
        server_text: str = "",
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.objects = dict(objects or {})
        self.server_text = server_text

    def in_full(self) -> str:
        """The text with the server's own message; only for what holds no values of an event."""
        if self.sqlstate and self.server_text and isinstance(self, DataError | DatabaseError):
            return _text(self.sqlstate, self.server_text, self.objects)
        return str(self)


class Unavailable(StorageError):
    """The database cannot be used now."""


class QueryTimeout(StorageError):
    """A time limit ran out."""


class SerializationFailure(StorageError):
    """Another transaction was in the way."""


class DataError(StorageError):
    """The data is not acceptable."""


class DatabaseError(StorageError):
    """The statement failed."""


READ_ONLY: Final = "25006"
_CANNOT_CONNECT: Final = "cannot connect: "
# A SQLSTATE, or a class of them; the longer one counts. Any other is a `DatabaseError`.
KINDS: Final[Mapping[str, type[StorageError]]] = {
    "08": Unavailable,
    "0A000": SerializationFailure,
    "21": DataError,
    "22": DataError,
    "2200H": Unavailable,
    "23": DataError,
    "25": Unavailable,
    "25P03": QueryTimeout,
    "25P04": QueryTimeout,
    "26": Unavailable,
    "28": Unavailable,
    "3D": Unavailable,
    "3F": Unavailable,
    "40001": SerializationFailure,
    "40P01": SerializationFailure,
    "40003": Unavailable,
    "42": Unavailable,
    "53": Unavailable,
    "54": DataError,
    "55": Unavailable,
    "55P03": QueryTimeout,
    "57": Unavailable,
    "57014": QueryTimeout,
    "58": Unavailable,
    "F0": Unavailable,
}
# Prepared statements that are missing or exist twice: a pooler shares the server process with other sessions.
POOLED: Final = ("26000", "42P05")
# From a pooler, or the server behind one, when prepared statements get lost between two transactions.
_POOLER: Final = ("08P01", "26", "42P05")
_POOLER_ADVICE: Final = (
    "is a pooler in transaction mode in between? It has to keep prepared statements (pgbouncer 1.21 or newer with "
    "max_prepared_statements), or be in session mode"
)


def kind_of(state: str) -> type[StorageError]:
    """What kind of error a SQLSTATE of a statement is."""
    return KINDS.get(state) or KINDS.get(state[:2]) or DatabaseError


def translate(error: BaseException) -> StorageError | None:
    """Our error for one of the driver's, or None if it is none of the driver's."""
    if isinstance(error, asyncpg.PostgresError):
        return _of_server(error)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return QueryTimeout("the database took too long")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Unavailable(f"{type(error).__name__}: {error}")
    return None


def _of_server(error: asyncpg.PostgresError) -> StorageError:
    state = error.sqlstate or ""
    kind = kind_of(state)
    objects = _objects(error)
    text = error.message or ""
    # Never `detail`: PostgreSQL puts the row's values into it. The texts of errors about data hold values as well,
    # and those of errors we do not know (an operator's own trigger) may.
    text_shown = "" if issubclass(kind, DataError | DatabaseError) else text
    if state.startswith(_POOLER):
        text_shown = f"{text_shown}: {_POOLER_ADVICE}"
    message = _text(state, text_shown or type(error).__name__, objects)
    return kind(message, state or None, objects=objects, server_text=text)


def _objects(error: asyncpg.PostgresError) -> dict[str, str]:
    fields = {
        "table": error.table_name,
        "column": error.column_name,
        "constraint": error.constraint_name,
        "type": error.data_type_name,
    }
    return {name: value for name, value in fields.items() if value}


def _text(state: str, text: str, objects: Mapping[str, str]) -> str:
    where = " ".join(f"{name} {value}" for name, value in objects.items())
    return f"SQLSTATE {state}: {text}" + (f" ({where})" if where else "")


class _Translated:
    """What `translated` returns: one for all, and no generator, for it surrounds every statement."""

    def __enter__(self) -> None:
        """Nothing to begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (ours := translate(error)) is not None:
            raise ours from error


_TRANSLATED: Final = _Translated()


def translated() -> AbstractContextManager[None]:
    """In a `with` statement: the driver's exceptions become ours; no other module sees the driver's."""
    return _TRANSLATED


@contextmanager
def connecting() -> Iterator[None]:
    """As `translated`, while a connection is opened or waited for: `Unavailable`, whatever the server says.

    No event can be to blame for a connection that was not opened.
    """
    try:
        with translated():
            yield
    except QueryTimeout as error:
        raise Unavailable("no connection to the database in time", error.sqlstate) from error
    except StorageError as error:
        # One without a code says so itself, and so does one that comes from another attempt inside.
        if error.sqlstate is None or str(error).startswith(_CANNOT_CONNECT):
            raise
        raise Unavailable(f"{_CANNOT_CONNECT}{error.in_full()}", error.sqlstate) from error
