"""Which columns that our statements use the tables lack: tables that others made, or that were made long ago."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from tables.queries import load

if TYPE_CHECKING:
    from tables.connection.pool import Connection

# Files of statements that are run on tables which others may have made.
_FILES: Final = ("agents", "chats", "contacts", "exhausted", "messages", "onboarding", "post_scan")


async def missing_parts(connection: Connection, schema: str) -> list[str]:
    """What the statements use and the schema lacks, in PostgreSQL's words; empty if nothing is missing.

    The server parses every statement and runs none; `connection` is in no transaction. Raises `StorageError`.
    """
    missing: dict[str, None] = {}
    for file in _FILES:
        for text in load(file, schema).values():
            try:
                await connection.prepare(text)
            except (asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError) as error:
                missing[f"{file}: {error.message}"] = None
    return list(missing)
