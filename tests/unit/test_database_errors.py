"""What each error of PostgreSQL counts as; the table in the documentation is the one in the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import asyncpg
import pytest

import streams
from tables.errors import (
    KINDS,
    DatabaseError,
    DataError,
    QueryTimeout,
    SerializationFailure,
    StorageError,
    Unavailable,
    connecting,
    kind_of,
    translate,
    translated,
)

_PAGE: Final = Path(streams.__path__[0]).resolve().parent / "docs" / "specification" / "database-errors.md"
_ROW: Final = re.compile(r"^\| `(\w+)` \| `(\w+)` \| (.+) \|$", re.MULTILINE)


def _server(sqlstate: str, message: str = "said the server", **fields: str) -> asyncpg.PostgresError:
    letters = {"schema": "s", "table": "t", "column": "c", "type": "d", "constraint": "n", "detail": "D"}
    given = {letters[name]: value for name, value in fields.items()}
    error = asyncpg.PostgresError.new({"S": "ERROR", "C": sqlstate, "M": message, **given})
    assert isinstance(error, asyncpg.PostgresError)
    return error


def _translated(error: BaseException) -> StorageError:
    ours = translate(error)
    assert ours is not None
    return ours


@pytest.mark.rule("DBE-3")
def test_the_documented_table_of_codes_is_the_one_in_the_code() -> None:
    _, _, text = _PAGE.read_text(encoding="utf-8").partition("## Codes")
    rows = _ROW.findall(text)
    assert {code: kind for code, kind, _ in rows} == {code: kind.__name__ for code, kind in KINDS.items()}
    assert len(rows) == len(KINDS)
    assert all(len(reason) > 10 for _, _, reason in rows)
    assert "| any other | `DatabaseError` |" in text


@pytest.mark.rule("DBE-3")
@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", Unavailable),
        ("08P01", Unavailable),
        ("0A000", SerializationFailure),
        ("22001", DataError),
        ("2200H", Unavailable),
        ("22P02", DataError),
        ("23505", DataError),
        ("25006", Unavailable),
        ("25P03", QueryTimeout),
        ("26000", Unavailable),
        ("40001", SerializationFailure),
        ("40003", Unavailable),
        ("42501", Unavailable),
        ("42P05", Unavailable),
        ("53100", Unavailable),
        ("54000", DataError),
        ("55000", Unavailable),
        ("55006", Unavailable),
        ("55P03", QueryTimeout),
        ("57014", QueryTimeout),
        ("57P01", Unavailable),
        ("57P03", Unavailable),
        ("58030", Unavailable),
        ("P0001", DatabaseError),
        ("XX000", DatabaseError),
        ("99999", DatabaseError),
    ],
)
def test_a_code_counts_before_its_class(sqlstate: str, kind: type[StorageError]) -> None:
    assert kind_of(sqlstate) is kind
    assert type(_translated(_server(sqlstate))) is kind


@pytest.mark.parametrize("sqlstate", ["08P01", "26000", "42P05"])
def test_an_error_of_a_pooler_names_the_pooler_and_what_it_needs(sqlstate: str) -> None:
    text = str(_translated(_server(sqlstate, 'prepared statement "x" does not exist')))
    assert sqlstate in text
    assert "pgbouncer 1.21" in text
    assert "max_prepared_statements" in text
    assert "session mode" in text


def test_a_sequence_at_its_end_is_named() -> None:
    text = 'nextval: reached maximum value of sequence "messages_id_seq" (7)'
    assert text in str(_translated(_server("2200H", text)))


def test_an_error_says_which_objects_the_server_named() -> None:
    named = _translated(_server("23514", table="chats", constraint="broken", column="a", type="b"))
    assert named.objects
    assert named.objects == {"table": "chats", "column": "a", "constraint": "broken", "type": "b"}
    assert "constraint broken" in str(named)
    assert not _translated(_server("54000")).objects


@pytest.mark.parametrize("sqlstate", ["22P02", "23505", "P0001", "XX000", "54000"])
def test_the_servers_text_is_kept_apart_where_it_may_hold_values(sqlstate: str) -> None:
    error = _translated(_server(sqlstate, 'invalid input: "secret"', detail="secret too"))
    assert "secret" not in str(error)
    assert "secret" in error.in_full()
    assert "secret too" not in error.in_full()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError(111, "refused"), Unavailable),
        (asyncpg.InterfaceError("connection is closed"), Unavailable),
        (asyncpg.InternalClientError("got result for unknown protocol state"), Unavailable),
        (TimeoutError(), QueryTimeout),
    ],
)
def test_errors_without_a_code_are_told_apart_too(error: Exception, kind: type[StorageError]) -> None:
    ours = _translated(error)
    assert type(ours) is kind
    assert ours.sqlstate is None


def test_a_value_that_the_driver_cannot_send_is_bad_data_and_not_told() -> None:
    error = _translated(asyncpg.DataError("invalid input for query argument $1: 99 (out of range)"))
    assert type(error) is DataError
    assert "99" not in str(error)


def test_what_is_no_error_of_the_driver_stays_as_it_is() -> None:
    assert translate(KeyError("x")) is None
    with pytest.raises(KeyError), translated():
        raise KeyError("x")
    with pytest.raises(KeyError), connecting():
        raise KeyError("x")


@pytest.mark.rule("DBE-1")
@pytest.mark.parametrize("sqlstate", ["XX000", "22023", "23505", "54000", "57014", "0A000", "P0001", "42704"])
def test_while_connecting_every_code_is_an_outage(sqlstate: str) -> None:
    with pytest.raises(Unavailable) as raised, connecting():
        raise _server(sqlstate, "no room")
    assert raised.value.sqlstate == sqlstate


@pytest.mark.parametrize("sqlstate", ["XX000", "28P01", "22023"])
def test_while_connecting_the_servers_own_words_are_told(sqlstate: str) -> None:
    """They can hold no values of events."""
    with pytest.raises(Unavailable, match=f"cannot connect: SQLSTATE {sqlstate}: no room"), connecting():
        raise _server(sqlstate, "no room")


def test_a_connection_that_is_opened_for_another_one_is_told_once() -> None:
    with pytest.raises(Unavailable) as raised, connecting(), connecting():
        raise _server("28P01", "no room")
    assert str(raised.value) == "cannot connect: SQLSTATE 28P01: no room"


def test_a_connection_that_is_not_there_in_time_is_an_outage() -> None:
    with pytest.raises(Unavailable, match="no connection to the database in time"), connecting():
        raise TimeoutError
