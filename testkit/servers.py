"""A real NATS server and a real PostgreSQL on free ports of this machine, for the demo and the tests."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from uuid import uuid4

from testkit.binaries import ServerError as ServerError
from testkit.binaries import as_account, nats_server, postgres_folder, unprivileged_account
from testkit.server import Server as Server
from testkit.server import free_port as free_port


class NatsServer(Server):
    """NATS with JetStream. `settings` are further lines of its configuration file."""

    name = "nats-server"
    stop_signal = signal.SIGTERM

    def __init__(self, *, settings: str = "") -> None:
        super().__init__()
        self._program = nats_server()
        self._settings = settings
        self.node_name = f"embedded-{uuid4().hex}"
        self.monitoring_port = 0

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    def _arguments(self) -> list[str]:
        return [str(self._program), "-c", str(self._folder / "nats.conf")]

    def _configure(self) -> None:
        self.monitoring_port = self.monitoring_port or free_port()
        text = f"""
            server_name: {self.node_name}
            listen: "127.0.0.1:{self.port}"
            http: "127.0.0.1:{self.monitoring_port}"
            jetstream {{ store_dir: "{self._folder / "jetstream"}" }}
            {self._settings}
        """
        (self._folder / "nats.conf").write_text(text, encoding="utf-8")


class PostgresServer(Server):
    """PostgreSQL, superuser `postgres`, no passwords. `settings` go over those that we choose.

    Without `fsync` it is faster, and `kill` still loses nothing, for the machine does not crash.
    """

    name = "postgresql"
    stop_signal = signal.SIGINT  # "fast": ends the sessions instead of waiting for them

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        super().__init__(unprivileged_account())
        self._programs = postgres_folder(self._account)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "track_commit_timestamp": "on",
            "wal_level": "logical",
            "fsync": "off",
            "full_page_writes": "off",
            **(settings or {}),
        }

    @property
    def dsn(self) -> str:
        """Where clients connect, to the database `postgres`."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """Where clients connect to another database of this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _arguments(self) -> list[str]:
        return [str(self._programs / "postgres"), "-D", str(self._data)]

    def _configure(self) -> None:
        if not (self._data / "PG_VERSION").exists():
            self._init()
        lines = [f"{name} = '{value}'" for name, value in {**self._settings, "port": self.port}.items()]
        (self._data / "postgresql.auto.conf").write_text("\n".join([*lines, ""]), encoding="utf-8")

    def _init(self) -> None:
        options = ["-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        options += ["-U", "postgres", "--auth=trust", "--no-sync", "--no-instructions"]
        self._run("initdb", "-D", str(self._data), *options)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the server's account. Raises `ServerError`."""
        with self._log.open("ab") as log:
            done = subprocess.run(
                [str(self._programs / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                check=False,
                **as_account(self._account),
            )
        if done.returncode != 0:
            raise ServerError(f"{program} failed: {self._log_tail()}")

    def _ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        # First line: whose file it is; eighth: what that process is doing.
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")
