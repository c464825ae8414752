"""A streaming standby of an embedded PostgreSQL, for tests of fail-over."""

from __future__ import annotations

import subprocess

import asyncpg

from testkit.servers import PostgresServer, ServerError

NAME = "standby"


class StandbyServer(PostgresServer):
    """A copy of `primary` that follows it; `promote` makes it a primary."""

    def __init__(self, primary: PostgresServer) -> None:
        follow = f"host=127.0.0.1 port={primary.port} user=postgres application_name={NAME}"
        super().__init__(settings={"primary_conninfo": follow})
        self._primary = primary

    async def promote(self) -> None:
        """Take writes from now on."""
        await run(self.dsn, "SELECT pg_promote()")

    def _init(self) -> None:
        account = self._account
        with self._log.open("ab") as log:
            done = subprocess.run(
                [
                    str(self._programs / "pg_basebackup"),
                    *("-D", str(self._data), "-d", self._primary.dsn, "-c", "fast", "--no-sync"),
                ],
                stdout=log,
                stderr=log,
                cwd="/",
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                check=False,
            )
        if done.returncode != 0:
            raise ServerError(f"pg_basebackup failed: {self._last_words()}")
        (self._data / "standby.signal").touch()

    def _ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")


async def run(dsn: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=5)
