"""What is done with each parameter of a connection string: passed on, accepted, ignored with a warning, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final


class DsnError(ValueError):
    """A connection text that cannot be used: what is wrong, and what is expected. Shows no value."""


# The value of sslrootcert for the authorities that the operating system trusts.
SYSTEM: Final = "system"
SECRETS: Final = frozenset({"password", "sslpassword", "passfile"})

_SERVER: Final = frozenset({"host", "hostaddr", "port", "dbname", "database", "user", "password"})
_DRIVER: Final = (
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslpassword",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "sslnegotiation",
    "krbsrvname",
    "gsslib",
    "passfile",
)
_SPECIAL: Final = frozenset(
    {"connect_timeout", "target_session_attrs", "channel_binding", "ssl", "requiressl", "options"}
)
_ANY: Final[frozenset[str]] = frozenset()
_NO: Final = frozenset({"0", "false", "off", "no"})
# What has no meaning for us, or is so anyway; the values that can be kept, none named: any.
_HARMLESS: Final[Mapping[str, frozenset[str]]] = {
    "keepalives": _ANY,
    "keepalives_idle": _ANY,
    "keepalives_interval": _ANY,
    "keepalives_count": _ANY,
    "tcp_user_timeout": _ANY,
    "fallback_application_name": _ANY,
    "sslcompression": _ANY,
    "sslsni": _ANY,
    "load_balance_hosts": frozenset({"disable", "random"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "gssdelegation": _NO,
    "replication": _NO,
    "sslcertmode": frozenset({"allow"}),
    "client_encoding": frozenset({"utf8", "utf-8", "unicode", "auto"}),
    "min_protocol_version": frozenset({"3.0"}),
    "max_protocol_version": frozenset({"3.0", "3.2", "latest"}),
}
# Those of other clients' pools and drivers, and what the worker sets itself; with what is to be set instead.
_IGNORED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("pool_max_conns", "connection_limit"), "POSTGRES_POOL_SIZE"),
    **dict.fromkeys(
        (
            "pool_min_conns",
            "pool_min_idle_conns",
            "pool_max_conn_lifetime",
            "pool_max_conn_lifetime_jitter",
            "pool_max_conn_idle_time",
            "pool_health_check_period",
            "pool_ping_timeout",
            "default_query_exec_mode",
            "statement_cache_capacity",
            "statement_cache_mode",
            "statement_cache_size",
            "description_cache_capacity",
            "prefer_simple_protocol",
            "binary_parameters",
            "disable_prepared_binary_result",
            "pgbouncer",
            "pool_timeout",
            "socket_timeout",
            "schema",
            "supa",
            "timezone",
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
            "jit",
            "plan_cache_mode",
            "enable_seqscan",
        ),
        "",
    ),
}
# Settings of the server that change nothing of what is stored; the values allowed, none named: any.
_SETTINGS: Final[Mapping[str, frozenset[str]]] = {
    "application_name": _ANY,
    "search_path": _ANY,
    "work_mem": _ANY,
    "maintenance_work_mem": _ANY,
    "effective_cache_size": _ANY,
    "random_page_cost": _ANY,
    "extra_float_digits": _ANY,
    "idle_session_timeout": _ANY,
    "tcp_keepalives_idle": _ANY,
    "tcp_keepalives_interval": _ANY,
    "tcp_keepalives_count": _ANY,
    "client_min_messages": _ANY,
    # Anything weaker acknowledges events that a crash takes back.
    "synchronous_commit": frozenset({"on", "remote_apply"}),
}
# What hosters' gateways read from `options`; no server does.
_GATEWAY: Final = frozenset({"endpoint", "project", "reference", "cluster"})
_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSIONS: Final = ("any", "read-write", "primary")
_VERSIONS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")


def is_known(name: str) -> bool:
    """Whether a parameter of this name, in lower case, may be there."""
    return name in _SERVER | _SPECIAL | set(_DRIVER) | _HARMLESS.keys() | _IGNORED.keys() | _SETTINGS.keys()


def shown(name: str) -> str:
    """An unknown parameter's name, as far as it looks like one."""
    return name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.]{0,62}", name) else "(not a name)"


def tls(values: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The driver's parameters for TLS and Kerberos, and warnings for the operator. Raises `DsnError`."""
    _check_harmless(values)
    given = {name: values[name] for name in _DRIVER if values.get(name)}
    if _truth(values, "ssl") or _truth(values, "requiressl"):
        given.setdefault("sslmode", "require")
    notes = []
    if _one_of(values, "channel_binding", ("disable", "prefer", "require")) == "require":
        notes = _bind(given)
    mode = _one_of(given, "sslmode", _MODES)
    _one_of(given, "sslnegotiation", ("postgres", "direct"))
    for name in ("ssl_min_protocol_version", "ssl_max_protocol_version"):
        _one_of(given, name, _VERSIONS)
    if given.get("sslrootcert") == SYSTEM and mode != "verify-full":
        raise DsnError("has sslrootcert=system without sslmode=verify-full: expected both")
    if given.get("sslnegotiation") == "direct" and mode not in _MODES[3:]:
        raise DsnError(
            "has sslnegotiation=direct: expected sslmode require, verify-ca or verify-full with it"
        )
    return given, notes


def _bind(given: dict[str, str]) -> list[str]:
    """Verify the server instead, because the driver has no channel binding: both keep out a man in the middle."""
    mode = given.get("sslmode", "require")
    if mode not in _MODES[3:]:
        raise DsnError("has channel_binding=require without TLS: expected sslmode require or verify-full")
    given["sslmode"] = "verify-full"
    given.setdefault("sslrootcert", SYSTEM)
    return [
        "POSTGRES_DSN: channel_binding=require is kept by verifying the server's certificate and name "
        "(sslmode=verify-full); if no public authority vouches for it, set sslrootcert, or remove channel_binding"
    ]


def session(values: Mapping[str, str]) -> str | None:
    """`target_session_attrs`, None if not given. Raises `DsnError` for servers that take no writes."""
    return _one_of(values, "target_session_attrs", _SESSIONS)


def server_settings(values: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The settings of a session, and the names that are ignored. Raises `DsnError`."""
    settings = {name: values[name] for name in _SETTINGS if values.get(name)}
    for name in settings:
        _allowed(name, settings[name], _SETTINGS)
    ignored = [name for name in values if name in _IGNORED]
    if options := values.get("options"):
        ignored += _check_options(options)
        settings["options"] = options
    return settings, ignored


def ignored_note(ignored: Iterable[str]) -> list[str]:
    """One warning that names all parameters that are ignored; none if none is."""
    names = sorted(set(ignored))
    if not names:
        return []
    instead = [f"{name}: set {_IGNORED[name]}" for name in names if _IGNORED[name]]
    text = f"POSTGRES_DSN: ignored, because the worker has its own: {', '.join(names)}"
    return [f"{text} ({'; '.join(instead)})" if instead else text]


def _check_harmless(values: Mapping[str, str]) -> None:
    for name in _HARMLESS.keys() & values.keys():
        _allowed(name, values[name], _HARMLESS)


def _allowed(name: str, value: str, table: Mapping[str, frozenset[str]]) -> None:
    if table[name] and value and value.lower() not in table[name]:
        raise DsnError(f"has a {name} that cannot be kept: expected {' or '.join(sorted(table[name]))}")


def _one_of(values: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str | None:
    value = values.get(name) or None
    if value is not None and value not in allowed:
        raise DsnError(f"has a {name} that cannot be used: expected {', '.join(allowed)}")
    return value


def _truth(values: Mapping[str, str], name: str) -> bool:
    value = values.get(name, "").lower()
    if value and value not in {"1", "true", *_NO}:
        raise DsnError(f"has a {name} that cannot be used: expected true or false")
    return value in {"1", "true"}


_OPTION: Final = re.compile(r"(?:-c\s*|--)?([A-Za-z][A-Za-z0-9_.\-]*)=((?:[^\s\\]|\\.)*)(?:\s+|$)", re.DOTALL)


def _check_options(options: str) -> list[str]:
    """The names in `options` that the worker's own settings win over. Raises `DsnError` for what is not harmless."""
    position, ignored = 0, []
    options = options.strip()
    while position < len(options):
        option = _OPTION.match(options, position)
        if option is None:
            raise DsnError("has options that are not understood: expected -c name=value")
        name = option[1].lower().replace("-", "_")
        if name in _SETTINGS:
            _allowed(name, re.sub(r"\\(.)", r"\1", option[2]), _SETTINGS)
        elif name in _IGNORED:
            ignored.append(name)
        elif name not in _GATEWAY:
            raise DsnError(f"has options with {shown(option[1])}, which is not supported")
        position = option.end()
    return ignored
