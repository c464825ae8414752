"""The columns that a table declares are those of its statements, mutations and migrations."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any, get_args

import pytest

import tables.accounts
import tables.chats
import tables.messages
from tables.attribution import LogRow
from tables.columns import Columns, accepted
from tables.contact_index import Contact
from tables.exhausted import ExhaustedRow
from tables.last_writer_wins import EventStamp
from tables.mutation_writer import ByTable, table_of
from tables.mutations import (
    AccountRow,
    ChatPatch,
    ChatRow,
    MessagePatch,
    MessageRow,
    Mutation,
    WriteRejection,
)
from tables.queries import RowsStatement, load

# The fields of a mutation that are no column: which one it is, and which event is behind it.
NO_COLUMNS = {"ref", "stamp", "is_step"}
# What a statement takes beside the columns: how a locked row is found, and how an unread count changes.
BESIDE = {
    "messages": {"id", "day", "last_metadata"},
    "chats": {"id", "last_metadata", "conversation_timestamp", "unread", "steps"},
    "agents": {"id", "last_metadata", "company_id"},
}
TABLES: list[tuple[str, Columns, list[Any]]] = [
    ("messages", tables.messages.COLUMNS, [MessageRow, MessagePatch]),
    ("chats", tables.chats.COLUMNS, [ChatRow, ChatPatch]),
    ("agents", tables.accounts.COLUMNS, [AccountRow]),
]
each_table = pytest.mark.parametrize(("table", "columns", "mutations"), TABLES, ids=[it[0] for it in TABLES])


def _sql(table: str, statement: str) -> str:
    return load(table, "s")[statement]


@each_table
def test_an_insert_writes_every_column_of_the_row_and_every_versioned_one(
    table: str, columns: Columns, mutations: list[Any]
) -> None:
    taken = set(RowsStatement(_sql(table, "insert")).names)
    fields = set(mutations[0]._fields) - NO_COLUMNS
    assert taken == {*fields, *columns.versioned, "last_metadata"}
    assert {*columns.fixed} <= fields


@each_table
def test_an_update_writes_every_declared_column_and_nothing_else(
    table: str, columns: Columns, mutations: list[Any]
) -> None:
    taken = set(RowsStatement(_sql(table, "update")).names)
    assert taken == ({*columns.versioned, *columns.fixed} - {"unread_count"}) | BESIDE[table]
    for column in columns.versioned:
        assert re.search(rf"\b{column} = (COALESCE\(n\.{column}\b|LEAST\()", _sql(table, "update")), column


@each_table
def test_a_lock_tells_which_versioned_columns_are_filled(
    table: str, columns: Columns, mutations: list[Any]
) -> None:
    assert set(re.findall(r"'(\w+)'(?: END|,\n)", _sql(table, "lock"))) == set(columns.versioned)


@each_table
def test_every_field_of_a_mutation_is_a_declared_column_or_its_key(
    table: str, columns: Columns, mutations: list[Any]
) -> None:
    row, *patches = mutations
    declared = {*columns.versioned, *columns.fixed}
    for patch in patches:
        assert set(patch._fields) - NO_COLUMNS - declared <= set(row._fields), patch
    undeclared = set(row._fields) - NO_COLUMNS - declared
    assert (
        undeclared
        == {
            "messages": {"message_id", "message_timestamp", "message_date"},
            "chats": {"chat_id", "conversation_timestamp"},
            "agents": {"agent_id", "company_id"},
        }[table]
    ), "a column has to be versioned or fixed"


def test_the_gaps_of_a_message_are_its_fixed_columns() -> None:
    lock = _sql("messages", "lock")
    asked = lock[lock.index("'' IN (") : lock.index("AS gaps")]
    assert set(re.findall(r"(\w+)(?:, '')|(\w+) IS NULL", asked)) == {
        (column, "") if column != "key" else ("", column) for column in tables.messages.COLUMNS.fixed
    }


def test_a_chat_update_without_a_count_leaves_the_count() -> None:
    stamp = EventStamp(None, "{}")
    patch = ChatPatch(0, stamp, "C", "Kopi", False, None, 0, '{"a":1}')
    assert tables.chats.COLUMNS.merge([patch]).values == {"last_message": '{"a":1}'}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT FROM unnest($1::text[], $2::bigint[]) AS n (a, b)", ("a", "b")),
        (
            "WITH x AS (SELECT FROM unnest($2::int[]) AS n (b)) SELECT FROM unnest($1::text[], $2::int[]) AS n(a, b)",
            ("a", "b"),
        ),
    ],
)
def test_arguments_are_put_in_the_order_of_the_statement(text: str, names: tuple[str, ...]) -> None:
    statement = RowsStatement(text)
    assert statement.names == names
    assert statement.of_rows([{"b": 2, "a": 1, "c": 3}, {"a": 4}]) == [[1, 4], [2, None]]
    assert statement.of_columns({"b": [2], "a": [1], "c": [3]}) == [[1], [2]]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT FROM unnest($2::text[]) AS n (a)",
        "SELECT FROM unnest($1::text[]) AS n (a), unnest($1::text[]) AS m (b)",
        "SELECT FROM unnest($1::text[]) AS n (a, b)",
    ],
)
def test_a_statement_whose_arrays_have_no_clear_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"arrays|two names|argument"):
        RowsStatement(text)


def test_a_row_takes_what_is_of_its_company_or_of_none() -> None:
    stamp = EventStamp(None, "{}")
    ours, other = (
        AccountRow(ref, stamp, "A", company, *[""] * 6) for ref, company in enumerate(("Kopi", "Teh"))
    )
    assert accepted({"company_id": "Kopi"}, [ours, other]) == ([ours], [WriteRejection(1, "company")])
    assert accepted({"company_id": None}, [ours, other]) == ([ours, other], [])
    assert accepted(None, [ours]) == ([], [WriteRejection(0, "not_found")])


def test_every_field_of_a_contact_is_read_and_written() -> None:
    stored = {field.name for field in fields(Contact)} - {"stored_id", "changed"}
    written = stored - {"row_version"}
    assert set(RowsStatement(_sql("contacts", "insert")).names) == written
    # A pair is never another one's, and neither is a company.
    assert set(RowsStatement(_sql("contacts", "update")).names) == (written - {"agent_id", "company_id"}) | {
        "stored_id",
        "row_version",
    }
    for select in _sql("contacts", "find").split("UNION ALL"):
        read = select[select.index("SELECT") + 6 : select.index("FROM unnest")]
        columns = {re.sub(r"::text( AS row_version)?", "", column).strip() for column in read.split(",")}
        assert columns == {f"c.{name}" for name in written} | {"c.xmin", "c.created_at"}


def test_every_field_of_an_onboarding_log_row_is_written() -> None:
    new = set(RowsStatement(_sql("onboarding", "insert")).names)
    changed = set(RowsStatement(_sql("onboarding", "update")).names)
    assert new == {field.name for field in fields(LogRow)} - {"stored_id", "version", "changed"}
    assert changed == (new - {"agent_id", "phone"}) | {"stored_id"}


@pytest.mark.parametrize("statement", ["add_steps", "drop_steps"])
def test_the_steps_of_chats_are_written_in_the_order_of_their_statements(statement: str) -> None:
    assert RowsStatement(_sql("chats", statement)).names == ("chat_id", "ns", "sequence", "incarnation")


def test_a_parked_event_is_written_in_the_order_of_its_fields() -> None:
    statement = _sql("exhausted", "insert_or_reopen")
    found = re.search(
        r"exhausted_events \(\s+created_at, ([^)]*), resolved, notes\)\s+SELECT now\(\), ([^\n]*)", statement
    )
    assert found is not None
    assert tuple(re.split(r",\s+", found[1])) == ExhaustedRow._fields
    assert re.findall(r"\$(\d)", found[2]) == [str(number) for number in range(1, 8)]


def test_a_mutation_of_a_type_that_no_table_takes_is_an_error_and_not_dropped() -> None:
    with pytest.raises(AssertionError, match="Expected code to be unreachable"):
        ByTable.of([object()])  # type: ignore[list-item]


def test_every_mutation_has_a_table() -> None:

    for kind in get_args(Mutation):
        mutation = kind(*[None] * len(kind._fields))
        assert [mutation] == getattr(ByTable.of([mutation]), table_of(mutation)), kind
