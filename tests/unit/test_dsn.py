"""Connection texts as people have them: libpq's, Go's and hosters'. A secret is never shown."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.config.settings import Settings, SettingsError
from tables.connection.dsn import Dsn, DsnError, Host, parse

DB = Host("db", 5432)
PLAIN = Dsn(hosts=(DB,), user="app", password="secret", database="wa")
BASE = "postgres://app:secret@db/wa"


@pytest.mark.parametrize(
    "text",
    [
        "postgres://app:secret@db/wa",
        "postgresql://app:secret@db:5432/wa",
        "postgresql://?host=db&user=app&password=secret&dbname=wa",
        "postgres:///wa?host=db&port=5432&user=app&password=secret",
        "host=db user=app password=secret dbname=wa",
        "host=db user=app password='secret' dbname = wa port=5432",
        " user=app\tpassword=se\\cret host='db' database=wa\n",
    ],
)
def test_a_url_and_keyword_text_mean_the_same(text: str) -> None:
    assert parse(text) == PLAIN


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ("postgres://app:p%2Fw%40%3A%25@db/wa", "p/w@:%"),
        ("postgres://app:a@b@db/wa", "a@b"),
        ("postgres://app:a?b#c&d@db/wa", "a?b#c&d"),
        ("postgres://app:a+b@db/wa", "a+b"),
        ("postgres://app@db/wa?password=a%26b%3Dc+d", "a&b=c+d"),
        ("host=db user=app dbname=wa password='it''s'", None),
        (r"host=db user=app dbname=wa password='it\'s \\ a=b c'", r"it's \ a=b c"),
        (r"host=db user=app dbname=wa password=a\ b\=c", "a b=c"),
        ("host=db user=app dbname=wa password=", ""),
    ],
)
def test_a_password_may_hold_any_character(text: str, password: str | None) -> None:
    if password is None:
        with pytest.raises(DsnError):
            parse(text)
    else:
        assert parse(text) == replace(PLAIN, password=password or None)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("postgres://", ()),
        ("postgres:///wa", ()),
        ("postgres://db?sslmode=disable", (DB,)),
        ("postgres://db1:5433,db2/wa", (Host("db1", 5433), Host("db2", 5432))),
        ("postgres://[::1]:6432,[fe80::2]/wa", (Host("::1", 6432), Host("fe80::2", 5432))),
        ("postgres://%2Frun%2Fpostgresql/wa", (Host("/run/postgresql", 5432),)),
        ("postgres:///wa?host=/cloudsql/p:europe-west1:i", (Host("/cloudsql/p:europe-west1:i", 5432),)),
        ("host=a,b,c port=1,,3", (Host("a", 1), Host("b", 5432), Host("c", 3))),
        ("host=a,b port=6432", (Host("a", 6432), Host("b", 6432))),
        ("port=6433 user=app", (Host("", 6433),)),
        ("postgres://:6433/wa", (Host("", 6433),)),
        ("host=a port=005433", (Host("a", 5433),)),
        ("hostaddr=127.0.0.1 host=db.example", (Host("127.0.0.1", 5432),)),
    ],
)
def test_hosts_and_ports_go_together(text: str, hosts: tuple[Host, ...]) -> None:
    assert parse(text).hosts == hosts


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("postgres://a/wa", "any"),
        ("postgres://a,b/wa", "read-write"),
        ("postgres://a,b/wa?target_session_attrs=any", "any"),
        ("postgres://a/wa?target_session_attrs=primary", "primary"),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_wanted(text: str, wanted: str) -> None:
    assert parse(text).target_session_attrs == wanted


@pytest.mark.parametrize(
    ("query", "change"),
    [
        ("connect_timeout=10", {"connect_timeout": 10.0}),
        ("connect_timeout=0", {"connect_timeout": None}),
        ("sslmode=disable", {"driver": {"sslmode": "disable"}}),
        ("ssl=true", {"driver": {"sslmode": "require"}}),
        ("requiressl=1", {"driver": {"sslmode": "require"}}),
        ("sslmode=verify-full&sslrootcert=system",
         {"driver": {"sslmode": "verify-full", "sslrootcert": "system"}}),
        ("sslcert=/a&sslkey=/b&sslpassword=p", {"driver": {"sslcert": "/a", "sslkey": "/b", "sslpassword": "p"}}),
        ("sslmode=require&sslnegotiation=direct", {"driver": {"sslmode": "require", "sslnegotiation": "direct"}}),
        ("application_name=bots", {"settings": {"application_name": "bots"}}),
        ("search_path=a,public", {"settings": {"search_path": "a,public"}}),
        ("options=endpoint%3Dep-cool-123", {"settings": {"options": "endpoint=ep-cool-123"}}),
        ("options=-c%20work_mem%3D8MB+--search_path%3Da", {"settings": {"options": "-c work_mem=8MB --search_path=a"}}),
        ("options=--cluster%3Dbig-one", {"settings": {"options": "--cluster=big-one"}}),
    ],
)  # fmt: skip
def test_parameters_of_libpq_and_hosters_work(query: str, change: dict[str, object]) -> None:
    assert parse(f"{BASE}?{query}") == replace(PLAIN, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "query",
    [
        "gssencmode=disable",
        "gssencmode=prefer&krbsrvname=",
        "channel_binding=prefer",
        "channel_binding=disable",
        "keepalives=1&keepalives_idle=30&keepalives_interval=5&keepalives_count=3",
        "tcp_user_timeout=10000",
        "fallback_application_name=psql",
        "load_balance_hosts=disable",
        "client_encoding=UTF8",
        "sslsni=1&sslcompression=0&sslcertmode=allow",
        "replication=false",
        "",
        "&",
    ],
)
def test_parameters_without_a_meaning_here_are_harmless(query: str) -> None:
    assert parse(f"{BASE}?{query}") == PLAIN


@pytest.mark.parametrize(
    "name",
    [
        "pool_max_conns",
        "pool_min_conns",
        "pool_max_conn_lifetime",
        "pool_max_conn_idle_time",
        "pool_health_check_period",
        "pool_max_conn_lifetime_jitter",
        "default_query_exec_mode",
        "statement_cache_capacity",
        "description_cache_capacity",
        "statement_cache_mode",
        "TimeZone",
        "timezone",
        "pgbouncer",
        "connection_limit",
        "binary_parameters",
        "statement_timeout",
        "supa",
    ],
)
def test_parameters_of_other_pools_are_ignored_with_a_word(name: str) -> None:
    for text in (f"{BASE}?{name}=5", f"host=db user=app password=secret dbname=wa {name}=5"):
        dsn = parse(text)
        assert replace(dsn, notes=()) == PLAIN
        assert len(dsn.notes) == 1
        assert name.lower() in dsn.notes[0]


def test_all_that_is_ignored_is_one_warning_that_says_what_to_set() -> None:
    (note,) = parse(f"{BASE}?pool_max_conns=20&TimeZone=UTC&pool_min_conns=2").notes

    assert all(
        name in note for name in ("pool_max_conns", "pool_min_conns", "timezone", "POSTGRES_POOL_SIZE")
    )


def test_channel_binding_is_kept_by_verifying_the_certificate() -> None:
    dsn = parse(f"{BASE}?sslmode=require&channel_binding=require")
    assert dsn.driver == {"sslmode": "verify-full", "sslrootcert": "system"}
    assert "channel_binding" in dsn.notes[0]
    own = parse(f"{BASE}?channel_binding=require&sslrootcert=/ca.pem")
    assert own.driver == {"sslmode": "verify-full", "sslrootcert": "/ca.pem"}


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("pool_max_connections=5", "pool_max_connections"),
        ("sslmod=require", "sslmod"),
        ("synchronous_commit=off", "synchronous_commit"),
        ("default_transaction_read_only=on", "default_transaction_read_only"),
        ("datestyle=German", "datestyle"),
        ("role=other", "role"),
        ("options=-c%20synchronous_commit%3Doff", "synchronous_commit"),
        ("options=-c%20role%3Dother", "role"),
        ("options=-x", "options"),
        ("sslmode=no-verify", "sslmode"),
        ("sslmode=disable&channel_binding=require", "channel_binding"),
        ("sslmode=require&sslrootcert=system", "sslrootcert"),
        ("sslnegotiation=direct", "sslnegotiation"),
        ("gssencmode=require", "gssencmode"),
        ("require_auth=scram-sha-256", "require_auth"),
        ("target_session_attrs=standby", "target_session_attrs"),
        ("target_session_attrs=prefer-standby", "target_session_attrs"),
        ("client_encoding=LATIN1", "client_encoding"),
        ("replication=database", "replication"),
        ("connect_timeout=10s", "connect_timeout"),
        ("connect_timeout=-1", "connect_timeout"),
        ("port=x", "port"),
        ("port=000001999999", "port"),
        ("port=000000", "port"),
        ("host=a,b&port=1,2,3", "ports"),
        ("ssl=maybe", "ssl"),
        ("service=production", "service"),
        ("ssl_min_protocol_version=1.2", "ssl_min_protocol_version"),
    ],
)
def test_anything_else_is_refused_by_name(query: str, named: str) -> None:
    with pytest.raises(DsnError, match=named):
        parse(f"{BASE}?{query}")
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"COMPANY_ID": "Kopi", "POSTGRES_DSN": f"{BASE}?{query}", "SERVER_PORT": "x"})
    assert [problem.split()[0] for problem in caught.value.problems] == ["POSTGRES_DSN", "SERVER_PORT"]


@pytest.mark.parametrize("name", ["sslcert", "sslkey", "sslrootcert", "sslcrl"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"POSTGRES_DSN has a {name}"):
        Settings.from_env({"COMPANY_ID": "Kopi", "POSTGRES_DSN": f"{BASE}?{name}=/nowhere.pem"})


_SPECIAL = st.text(alphabet="/?#@:&=%' \\,[]+.$", max_size=4)
_TEXTS = st.sampled_from(
    [
        "postgres://app:{}@db/wa",
        "postgres://app:{}@db/wa?pool_max_connections=1",
        "postgres://app:{}@db:port/wa",
        "postgres://db/wa?user=app&password={}&sslmode=x",
        "postgres://db/wa?password={}",
        "postgres:/app:{}@db",
        "mysql://app:{}@db",
        "host=db password={} user=app sslmode=require",
        "host=db user=app password={}",
        "host=db user=app password='{}' port=x",
        "host=db sslpassword={} user=app connect_timeout=x",
        "host=db password {}",
    ]
)


@example(text="host=db password={} user=app", parts=("", " ", "=", ""))
@example(text="postgres://db/wa?password={}", parts=("", "&", "=", ""))
@given(text=_TEXTS, parts=st.tuples(_SPECIAL, _SPECIAL, _SPECIAL, _SPECIAL))
def test_no_error_shows_a_piece_of_a_secret(text: str, parts: tuple[str, str, str, str]) -> None:
    """The secret is cut by characters that mean something in a URL or in keyword text."""
    secret = f"{parts[0]}hunter{parts[1]}hunter{parts[2]}hunter{parts[3]}"
    try:
        told = parse(text.replace("{}", secret)).notes
    except DsnError as error:
        told = (str(error),)
    assert "hunter" not in " ".join(told)
