"""Schemas at the start: how many at a time, and what holds up no other company."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from events.subjects import Tenant
from streams.config.settings import Settings
from streams.lifecycle.bootstrap import SCHEMAS_AT_ONCE, Bootstrap

COMPANIES = [f"K{number}" for number in range(2 * SCHEMAS_AT_ONCE)]


class Schemas:
    """Schemas without a database. Those in `adopted` need an index, whose build takes for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.adopted: set[str] = set()
        self.building: set[str] = set()
        self.migrating = self.most_migrating = 0
        monkeypatch.setattr("tables.schema.migrations.briefly", self._migrate)
        monkeypatch.setattr("tables.schema.indexes.wanted", self._wanted)
        monkeypatch.setattr("tables.schema.indexes.build", self._build)
        monkeypatch.setattr("tables.schema.partitions.make_partitions", self._nothing)
        monkeypatch.setattr("tables.schema.companies.claim", self._nothing)
        for name in ("_require_tables", "_require_columns"):
            monkeypatch.setattr(f"tables.schema.migrations.{name}", self._nothing)
        for name in ("inspect", "message_keys_complete", "attached", "publish_changes"):
            monkeypatch.setattr(f"streams.lifecycle.bootstrap.{name}", self._nothing)

    async def _migrate(self, *_: object, **__: object) -> SimpleNamespace:
        self.migrating += 1
        self.most_migrating = max(self.migrating, self.most_migrating)
        await asyncio.sleep(0)
        self.migrating -= 1
        return SimpleNamespace(applied=[], done=frozenset(), is_owned=True)

    async def _wanted(self, _: object, schema: str, *, required: bool) -> list[str]:
        return ["messages_key"] if schema in self.adopted else []

    async def _build(self, _: object, schema: str, *, required: bool) -> None:
        self.building.add(schema)
        await asyncio.Event().wait()

    async def _nothing(self, *_: object, **__: object) -> None:
        """Nothing is missing, and nothing is to be done."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[None]:
        yield


async def started(schemas: Schemas) -> tuple[set[str], set[str]]:
    """The companies whose schema is there, and those that still wait, once nothing moves any more."""
    settings = Settings.from_env({"POSTGRES_DSN": "postgres://db/wa", "COMPANY_ID": ",".join(COMPANIES)})
    tables = SimpleNamespace(messages=SimpleNamespace())
    bootstrap = Bootstrap(
        settings, cast(Any, schemas), cast(Any, None), dict.fromkeys(settings.tenants, cast(Any, tables))
    )
    tasks = {
        asyncio.create_task(bootstrap.schema(tenant), name=tenant.company) for tenant in settings.tenants
    }
    for _ in range(200):
        await asyncio.sleep(0)
    done = {task for task in tasks if task.done()}
    waiting = tasks - done
    for task in waiting:
        task.cancel()
    await asyncio.gather(*done)
    return {task.get_name() for task in done}, {task.get_name() for task in waiting}


async def test_only_some_schemas_are_looked_at_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = Schemas(monkeypatch)
    assert await started(schemas) == (set(COMPANIES), set())
    assert schemas.most_migrating == SCHEMAS_AT_ONCE


@pytest.mark.rule("RUN-6")
async def test_indexes_that_are_built_for_hours_hold_up_only_their_companies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schemas = Schemas(monkeypatch)
    adopted = COMPANIES[: SCHEMAS_AT_ONCE + 1]
    schemas.adopted = {Tenant(company).schema for company in adopted}
    assert await started(schemas) == (set(COMPANIES) - set(adopted), set(adopted))
    assert len(schemas.building) == SCHEMAS_AT_ONCE
