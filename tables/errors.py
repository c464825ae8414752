"""What can go wrong in PostgreSQL, told apart by what helps.

StorageError
├─ Unavailable    the server, the connection or the whole schema: keep the batch, pause, try again
├─ Expired        a statement, a lock or the pool took too long: pause, then look for the event to blame
├─ Contended      a deadlock or a stale plan: the same again, at once
├─ BadData        the data of some event (SQLSTATE classes 21, 22, 23, 54): find the event, give it up
└─ Failed         anything else about a statement: find the event, try it again later
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg


class StorageError(Exception):
    """The database did not do what was asked. `sqlstate` is None when no server answered."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Unavailable(StorageError):
    """The database cannot be used now."""


class Expired(StorageError):
    """A time limit ran out."""


class Contended(StorageError):
    """Another transaction was in the way."""


class BadData(StorageError):
    """The data is not acceptable."""


class Failed(StorageError):
    """The statement failed."""


_CONTENDED: Final = {"40001", "40P01", "0A000"}
_EXPIRED: Final = {"57014", "55P03", "25P03"}
READ_ONLY: Final = "25006"
# Prepared statements that are gone or there twice: a connection pooler hands the session's server to others.
POOLED: Final = {"26000", "42P05"}
_POOLED_TEXT: Final = (
    "a connection pooler in transaction mode does not keep prepared statements: "
    "set pool_mode = session, or use pgbouncer 1.21 or later with max_prepared_statements"
)
_BAD_DATA: Final = {"21", "22", "23", "54"}
# Connection, authorisation, database gone, resources, operator, system; 42 and 3F: tables or rights are
# missing, which no event is to blame for.
_UNAVAILABLE: Final = {"08", "28", "3D", "3F", "42", "53", "57", "58"}


def translate(error: BaseException) -> StorageError | None:
    """Our error for one of the driver's, or None if it is none of the driver's."""
    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        return _of_state(state)(_message(error, state), state or None)
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return Expired("the database took too long")
    if isinstance(error, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return Unavailable(f"{type(error).__name__}: {error}")
    return None


def _of_state(state: str) -> type[StorageError]:
    if state in _CONTENDED:
        return Contended
    if state in _EXPIRED:
        return Expired
    if state == READ_ONLY or state in POOLED or state[:2] in _UNAVAILABLE:
        return Unavailable
    return BadData if state[:2] in _BAD_DATA else Failed


def _message(error: asyncpg.PostgresError, state: str) -> str:
    # Never `detail`: PostgreSQL puts the row's values into it. The texts of errors about data hold values as well,
    # and those of errors we do not know (an operator's own trigger) may.
    where = " ".join(
        f"{name} {value}"
        for name, value in (
            ("table", error.table_name),
            ("column", error.column_name),
            ("constraint", error.constraint_name),
        )
        if value
    )
    told = not issubclass(_of_state(state), BadData | Failed) and error.message
    text = _POOLED_TEXT if state in POOLED else told or type(error).__name__
    return f"SQLSTATE {state}: {text}" + (f" ({where})" if where else "")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's exceptions into ours; no other module sees the driver's."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error
