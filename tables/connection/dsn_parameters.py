"""The parameters of a connection string: what is done with each, and which of its values can be kept."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, Literal, NamedTuple

from tables.connection.session import SETTINGS


class DsnError(ValueError):
    """A connection text that cannot be used: what is wrong, and what is expected. Shows no value."""


class Parameter(NamedTuple):
    """What is done with a parameter, and which values it may have (none named: any).

    `driver`: handed to the driver. `setting`: one of the server that changes nothing of what is stored. `ignored`: of
    other clients' pools and drivers, or set by the worker itself. `other`: read by name, or without a meaning here.
    """

    use: Literal["driver", "setting", "ignored", "other"] = "other"
    values: tuple[str, ...] = ()


# The value of sslrootcert for the authorities that the operating system trusts.
SYSTEM: Final = "system"
SECRETS: Final = frozenset({"password", "sslpassword", "passfile"})
_NO: Final = ("0", "false", "off", "no")
_YES: Final = ("1", "true")
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# What hosters' gateways read from `options`; no server does.
_GATEWAY: Final = frozenset({"endpoint", "project", "reference", "cluster"})
_VERIFIED: Final = (
    "POSTGRES_DSN: channel_binding=require is kept by verifying the server's certificate and name "
    "(sslmode=verify-full); if no public authority vouches for it, set sslrootcert, or remove channel_binding"
)
_DRIVER: Final = Parameter("driver")
_SETTING: Final = Parameter("setting")
_IGNORED: Final = Parameter("ignored")
_OTHER: Final = Parameter()
# For these the worker has a setting.
_POOL_SIZE: Final = ("connection_limit", "pool_max_conns")
PARAMETERS: Final[Mapping[str, Parameter]] = {
    **dict.fromkeys(("host", "hostaddr", "port", "dbname", "database", "user", "password"), _OTHER),
    "connect_timeout": _OTHER,
    "target_session_attrs": Parameter(values=("any", "read-write", "primary")),
    "options": _OTHER,
    "channel_binding": Parameter(values=("disable", "prefer", "require")),
    "ssl": Parameter(values=(*_YES, *_NO)),
    "requiressl": Parameter(values=(*_YES, *_NO)),
    "sslmode": Parameter("driver", _MODES),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"), _DRIVER),
    "ssl_min_protocol_version": Parameter("driver", _VERSIONS),
    "ssl_max_protocol_version": Parameter("driver", _VERSIONS),
    "sslnegotiation": Parameter("driver", ("postgres", "direct")),
    **dict.fromkeys(("passfile", "krbsrvname", "gsslib"), _DRIVER),
    # No meaning for us, or so anyway.
    **dict.fromkeys(("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"), _OTHER),
    **dict.fromkeys(("tcp_user_timeout", "fallback_application_name", "sslcompression", "sslsni"), _OTHER),
    "load_balance_hosts": Parameter(values=("disable", "random")),
    "gssencmode": Parameter(values=("disable", "prefer")),
    "gssdelegation": Parameter(values=_NO),
    "replication": Parameter(values=_NO),
    "sslcertmode": Parameter(values=("allow",)),
    "client_encoding": Parameter(values=("utf8", "utf-8", "unicode", "auto")),
    "min_protocol_version": Parameter(values=("3.0",)),
    "max_protocol_version": Parameter(values=("3.0", "3.2", "latest")),
    **dict.fromkeys(("application_name", "search_path", "work_mem", "maintenance_work_mem"), _SETTING),
    **dict.fromkeys(("effective_cache_size", "random_page_cost", "extra_float_digits"), _SETTING),
    **dict.fromkeys(("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"), _SETTING),
    **dict.fromkeys(("idle_session_timeout", "client_min_messages"), _SETTING),
    # Anything weaker acknowledges events that a crash takes back.
    "synchronous_commit": Parameter("setting", ("on", "remote_apply")),
    # What the worker sets itself; then Go's pool and driver, and other clients'.
    **dict.fromkeys(SETTINGS, _IGNORED),
    **dict.fromkeys(_POOL_SIZE, _IGNORED),
    **dict.fromkeys(("pool_min_conns", "pool_min_idle_conns", "pool_max_conn_lifetime"), _IGNORED),
    **dict.fromkeys(("pool_max_conn_lifetime_jitter", "pool_max_conn_idle_time"), _IGNORED),
    **dict.fromkeys(("pool_health_check_period", "pool_ping_timeout", "default_query_exec_mode"), _IGNORED),
    **dict.fromkeys(("statement_cache_capacity", "statement_cache_mode", "statement_cache_size"), _IGNORED),
    **dict.fromkeys(("description_cache_capacity", "prefer_simple_protocol", "binary_parameters"), _IGNORED),
    **dict.fromkeys(("disable_prepared_binary_result", "pgbouncer", "pool_timeout"), _IGNORED),
    **dict.fromkeys(("socket_timeout", "schema", "supa"), _IGNORED),
}


def kept(name: str, value: str) -> str:
    """The value of a known parameter, as it is used. Raises `DsnError` if it cannot be."""
    use, values = PARAMETERS[name]
    if not values or not value:
        return value
    # The driver takes its values as they are documented only.
    value = value if use == "driver" else value.lower()
    if value not in values:
        raise DsnError(f"has a {name} that cannot be used: expected {', '.join(values)}")
    return value


def shown(name: str) -> str:
    """An unknown parameter's name, as far as it looks like one."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]{0,62}", name) else "(not a name)"


def pieces(pattern: re.Pattern[str], text: str, problem: str) -> Iterator[re.Match[str]]:
    """The matches of `pattern`, one right behind the other. Raises `DsnError` if something is left of `text`."""
    position = 0
    while position < len(text):
        found = pattern.match(text, position)
        if found is None:
            raise DsnError(problem)
        yield found
        position = found.end()


def tls(values: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The driver's parameters for TLS and Kerberos, and warnings for the operator. Raises `DsnError`."""
    given = {name: value for name, value in values.items() if value and PARAMETERS[name].use == "driver"}
    if values.get("ssl") in _YES or values.get("requiressl") in _YES:
        given.setdefault("sslmode", "require")
    notes = []
    if values.get("channel_binding") == "require":
        # The driver has no channel binding; a verified server keeps out a man in the middle as well.
        if given.get("sslmode", "require") not in _MODES[3:]:
            raise DsnError("has channel_binding=require without TLS: expected sslmode require or verify-full")
        given["sslmode"] = "verify-full"
        given.setdefault("sslrootcert", SYSTEM)
        notes.append(_VERIFIED)
    mode = given.get("sslmode")
    if given.get("sslrootcert") == SYSTEM and mode != "verify-full":
        raise DsnError("has sslrootcert=system without sslmode=verify-full: expected both")
    if given.get("sslnegotiation") == "direct" and mode not in _MODES[3:]:
        raise DsnError(
            "has sslnegotiation=direct: expected sslmode require, verify-ca or verify-full with it"
        )
    return given, notes


def server_settings(values: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The settings of a session, and one warning that names all parameters that are ignored, if any is.

    Raises `DsnError`.
    """
    settings = {name: value for name, value in values.items() if value and PARAMETERS[name].use == "setting"}
    names = {name for name in values if PARAMETERS[name].use == "ignored"}
    if options := values.get("options"):
        settings["options"] = options
        names.update(name for name in _names(options.strip()) if PARAMETERS[name].use == "ignored")
    if not names:
        return settings, []
    text = f"POSTGRES_DSN: ignored, because the worker has its own: {', '.join(sorted(names))}"
    instead = [f"{name}: set POSTGRES_POOL_SIZE" for name in _POOL_SIZE if name in names]
    return settings, [f"{text} ({'; '.join(instead)})" if instead else text]


_OPTION: Final = re.compile(r"(?:-c\s*|--)?([A-Za-z][A-Za-z0-9_.\-]*)=((?:[^\s\\]|\\.)*)(?:\s+|$)", re.DOTALL)


def _names(options: str) -> Iterator[str]:
    """The parameters in `options`, without those of gateways. Raises `DsnError` for what is not harmless."""
    for option in pieces(_OPTION, options, "has options that are not understood: expected -c name=value"):
        name = option[1].lower().replace("-", "_")
        if name in PARAMETERS and PARAMETERS[name].use in ("setting", "ignored"):
            kept(name, re.sub(r"\\(.)", r"\1", option[2]))
            yield name
        elif name not in _GATEWAY:
            raise DsnError(f"has options with {shown(option[1])}, which is not supported")
