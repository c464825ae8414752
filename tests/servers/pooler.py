"""The system's pgbouncer in front of an embedded PostgreSQL."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Final

from testkit.binaries import ServerError, unprivileged_account
from testkit.server import Server
from testkit.servers import PostgresServer
from tests.programs import installed

# The first that keeps prepared statements in transaction mode (max_prepared_statements).
KEEPS_PREPARED: Final = (1, 21)
IGNORED: Final = (
    "ignore_startup_parameters = statement_timeout,lock_timeout,idle_in_transaction_session_timeout,"
    "jit,plan_cache_mode,enable_seqscan"
)
INSTALLED: Final = installed("pgbouncer")
PROGRAM: Final = INSTALLED or "pgbouncer"


def version() -> tuple[int, int]:
    """The version of the program, major and minor. Raises `ServerError`."""
    text = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", text)
    if found is None:
        raise ServerError(f"pgbouncer does not say its version: {text}")
    return int(found[1]), int(found[2])


class Pooler(Server):
    """pgbouncer with these lines in its configuration; they may be changed between a stop and a start."""

    name = "pgbouncer"
    stop_signal = signal.SIGTERM  # at once: SIGINT waits for the clients to go

    def __init__(self, postgres: PostgresServer, *lines: str) -> None:
        super().__init__(unprivileged_account())
        self._postgres = postgres
        self.lines: tuple[str, ...] = lines

    def dsn_of(self, database: str) -> str:
        """Where clients connect, to a database of the server behind."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def _ini(self) -> Path:
        return self._folder / "pgbouncer.ini"

    def _arguments(self) -> list[str]:
        return [PROGRAM, str(self._ini)]

    def _configure(self) -> None:
        lines = "\n".join(self.lines)
        text = f"""[databases]
* = host=127.0.0.1 port={self._postgres.port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = any
{lines}
"""
        self._ini.write_text(text, encoding="utf-8")
        self._ini.chmod(0o644)
