"""Settings of PostgreSQL with which acknowledged events can be lost at a fail-over or crash."""

from __future__ import annotations

from tables.connection.pool import Database
from tables.queries import load

_STANDBYS = (
    "PostgreSQL has {count} and synchronous_standby_names is empty: at a fail-over, events that are acknowledged "
    "may be missing. Set it (for example 'ANY 1 (*)') on every server, or accept the loss"
)
_COMMIT = (
    "PostgreSQL has synchronous_commit = {value} for us: a crash takes back events that are acknowledged. "
    "Set it to on"
)


async def durability_warnings(database: Database) -> list[str]:
    """Sentences about settings with which acknowledged events can be lost; none if there are none.

    Readers of the publication are no standbys. Any role may ask. Raises `StorageError`.
    """
    async with database.connection() as connection:
        [row] = await connection.fetch(load("replication", "")["durability"])
    found: list[str] = []
    if row["standbys"] and not row["synchronous"]:
        count = "a standby" if row["standbys"] == 1 else f"{row['standbys']} standbys"
        found.append(_STANDBYS.format(count=count))
    # `local` waits for no standby, which matters only where there is one to wait for.
    if row["commit"] == "off" or (row["commit"] == "local" and row["synchronous"]):
        found.append(_COMMIT.format(value=row["commit"]))
    return found
