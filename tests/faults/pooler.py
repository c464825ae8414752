"""Debian's pgbouncer in front of a PostgreSQL server, in session mode."""

from __future__ import annotations

import shutil
import signal
import socket
from typing import Final

from testkit.binaries import unprivileged_account
from testkit.server import Server

PROGRAM: Final = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
# What our sessions are set to at their start is the server's business behind a pooler.
_IGNORED: Final = (
    *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "jit", "plan_cache_mode"),
    *("enable_seqscan", "extra_float_digits", "search_path", "options"),
)


class PgBouncer(Server):
    """A pooler; the program must be there (`PROGRAM`)."""

    name = "pgbouncer"
    stop_signal = signal.SIGTERM

    def __init__(self, target: int) -> None:
        super().__init__(unprivileged_account())
        self._target = target

    def _arguments(self) -> list[str]:
        return [str(PROGRAM), str(self._folder / "pgbouncer.ini")]

    def _configure(self) -> None:
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={self._target}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = session",
            f"ignore_startup_parameters = {', '.join(_IGNORED)}",
            "default_pool_size = 30",
            "server_login_retry = 1",
        ]
        lines[1] += " user=postgres"
        path = self._folder / "pgbouncer.ini"
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")
        path.chmod(0o644)

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self.running
        except OSError:
            return False
