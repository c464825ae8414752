from __future__ import annotations

import asyncpg
import pytest

from tables.errors import DatabaseError, Unavailable
from tables.queries import load, operation, quoted

Seen = list[tuple[str, str, float, bool]]


@pytest.fixture
def seen() -> Seen:
    return []


def test_a_quoted_name_means_exactly_this_name() -> None:
    assert quoted("daisi_kopi") == '"daisi_kopi"'
    assert quoted('a"; DROP SCHEMA b; --') == '"a""; DROP SCHEMA b; --"'


def test_statements_are_found_by_name_and_name_their_schema() -> None:
    statements = load("schema", "daisi_kopi")

    assert statements["applied"].strip().endswith('SELECT name FROM "daisi_kopi".schema_migrations')
    assert "{schema}" not in "".join(statements.values())


def test_two_schemas_do_not_share_statements() -> None:
    assert load("schema", "daisi_one") != load("schema", "daisi_two")


def test_an_operation_is_timed_and_reported_as_a_success(seen: Seen) -> None:
    with operation(lambda *call: seen.append(call), "UpsertChat", "Chat"):
        pass

    [(name, entity, seconds, succeeded)] = seen
    assert (name, entity, succeeded) == ("UpsertChat", "Chat", True)
    assert seconds >= 0


def test_a_driver_error_is_reported_and_leaves_as_ours(seen: Seen) -> None:
    with (
        pytest.raises(Unavailable),
        operation(lambda *call: seen.append(call), "FindChat", "Chat"),
    ):
        raise asyncpg.UndefinedTableError("relation is not there")

    assert [(call[0], call[3]) for call in seen] == [("FindChat", False)]


def test_our_own_error_passes_an_operation_unchanged(seen: Seen) -> None:
    error = DatabaseError("as it is")

    with (
        pytest.raises(DatabaseError) as caught,
        operation(lambda *call: seen.append(call), "FindChat", "Chat"),
    ):
        raise error

    assert caught.value is error
    assert not seen[0][3]
