"""Settings: what is read, what is refused, and that one message says it all."""

from __future__ import annotations

import dataclasses

import pytest

from events.subjects import HISTORICAL, REALTIME, Tenant
from streams.config.settings import Settings, SettingsError, variables

NEEDED = {"COMPANY_ID": "KopiNusa", "POSTGRES_DSN": "postgres://app:hunter2@db:5432/wa"}

# Attribute and default of every optional variable.
DEFAULTS = {
    "DATABASE_POSTGRESAUTOMIGRATE": ("postgres_auto_migrate", True),
    "POSTGRES_POOL_SIZE": ("postgres_pool_size", 10),
    "NATS_URL": ("nats_servers", ("nats://admin:admin@nats",)),
    "NATS_CREDS": ("nats_creds", None),
    "NATS_NKEY_SEED": ("nats_nkey_seed", None),
    "NATS_TLS_CA": ("nats_tls_ca", None),
    "NATS_TLS_CERT": ("nats_tls_cert", None),
    "NATS_TLS_KEY": ("nats_tls_key", None),
    "NATS_JETSTREAM_DOMAIN": ("nats_jetstream_domain", None),
    "COMPANY_DEFAULT": ("company_default", "default_tenant"),
    "COMPANY_ALLOW": ("company_allow", ("*",)),
    "COMPANY_EXCLUDE": ("company_exclude", ()),
    "COMPANY_PROVISION": ("company_provision", True),
    "COMPANY_MAX": ("company_max", 1000),
    "NATS_FLEET_DURABLE": ("fleet_durable", "wa_fleet_"),
    "ENVIRONMENT": ("environment", "development"),
    "LOG_LEVEL": ("log_level", "info"),
    "SERVER_PORT": ("server_port", 8080),
    "STOP_TIMEOUT": ("stop_timeout", 28.0),
    "SERVER_BIND": ("server_bind", ("0.0.0.0", "::")),
    "METRICS_ENABLED": ("metrics_enabled", True),
    "METRICS_PORT": ("metrics_port", 2112),
    "METRICS_JID_LIMIT": ("metrics_jid_limit", 1000),
    "NATS_REALTIME_MAXAGE": ("realtime_max_age_days", 30),
    "NATS_REALTIME_STREAM": ("realtime_stream", "wa_events_stream"),
    "NATS_REALTIME_CONSUMER": ("realtime_consumer", "wa_listener_"),
    "NATS_REALTIME_DURABLE": ("realtime_durable", "wa_realtime_"),
    "NATS_REALTIME_GROUP": ("realtime_group", "wa_event_group_"),
    "NATS_REALTIME_SUBJECTLIST": ("realtime_subjects", REALTIME),
    "NATS_REALTIME_MAXDELIVER": ("realtime_max_deliver", 5),
    "NATS_REALTIME_NAKBASEDELAY": ("realtime_nak_base_delay", 1.0),
    "NATS_REALTIME_NAKMAXDELAY": ("realtime_nak_max_delay", 30.0),
    "NATS_REALTIME_ACKWAIT": ("realtime_ack_wait", 30.0),
    "NATS_HISTORICAL_MAXAGE": ("historical_max_age_days", 30),
    "NATS_HISTORICAL_STREAM": ("historical_stream", "wa_history_events_stream"),
    "NATS_HISTORICAL_CONSUMER": ("historical_consumer", "wa_history_listener_"),
    "NATS_HISTORICAL_DURABLE": ("historical_durable", "wa_history_"),
    "NATS_HISTORICAL_GROUP": ("historical_group", "wa_history_event_group_"),
    "NATS_HISTORICAL_SUBJECTLIST": ("historical_subjects", HISTORICAL),
    "NATS_HISTORICAL_MAXDELIVER": ("historical_max_deliver", 3),
    "NATS_HISTORICAL_NAKBASEDELAY": ("historical_nak_base_delay", 2.0),
    "NATS_HISTORICAL_NAKMAXDELAY": ("historical_nak_max_delay", 60.0),
    "NATS_HISTORICAL_ACKWAIT": ("historical_ack_wait", 60.0),
    "NATS_DLQSTREAM": ("dlq_stream", "dlq_stream"),
    "NATS_DLQSUBJECT": ("dlq_subject", "v1.dlq"),
    "NATS_DLQWORKERS": ("dlq_workers", 8),
    "NATS_DLQBASEDELAYMINUTES": ("dlq_base_delay_minutes", 5.0),
    "NATS_DLQMAXDELAYMINUTES": ("dlq_max_delay_minutes", 5.0),
    "NATS_DLQMAXAGEDAYS": ("dlq_max_age_days", 7),
    "NATS_DLQMAXDELIVER": ("dlq_max_deliver", 10),
    "NATS_DLQACKWAIT": ("dlq_ack_wait", 30.0),
    "NATS_REALTIME_BATCHSIZE": ("realtime_batch_size", 500),
    "NATS_HISTORICAL_BATCHSIZE": ("historical_batch_size", 5),
    "NATS_DLQBATCHSIZE": ("dlq_batch_size", 10),
    "NATS_DLQMAXACKPENDING": ("dlq_max_ack_pending", -1),
    "NATS_STREAM_REPLICAS": ("stream_replicas", 0),
    "NATS_STREAM_MAXCONSUMERS": ("stream_max_consumers", 10_000),
    "WORKERPOOLS_ONBOARDING_POOLSIZE": ("onboarding_pool_size", 10),
    "WORKERPOOLS_ONBOARDING_QUEUESIZE": ("onboarding_queue_size", 10000),
    "WORKERPOOLS_ONBOARDING_MAXBLOCK": ("onboarding_max_block", 1.0),
    "WORKERPOOLS_ONBOARDING_EXPIRYTIME": ("onboarding_expiry_time", 60.0),
    "POSTSCAN_DELAY": ("postscan_delay", 900.0),
    "STALL_TIMEOUT": ("stall_timeout", 300.0),
}


def settings(**changed: str) -> Settings:
    return Settings.from_env({**NEEDED, **changed})


def settings_error(**changed: str) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(**changed)
    return str(caught.value)


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_is_the_documented_one(name: str) -> None:
    attribute, value = DEFAULTS[name]
    assert getattr(settings(), attribute) == value


def test_every_variable_is_listed_with_its_default_and_meaning() -> None:
    listed = {variable.name: variable for variable in variables()}
    assert set(listed) == {*DEFAULTS, *NEEDED}
    assert all(variable.meaning for variable in listed.values())
    assert {name for name, variable in listed.items() if variable.default is None} == set(NEEDED)


@pytest.mark.rule("SET-2")
@pytest.mark.parametrize(
    ("name", "text", "attribute", "value"),
    [
        ("DATABASE_POSTGRESAUTOMIGRATE", "0", "postgres_auto_migrate", False),
        ("DATABASE_POSTGRESAUTOMIGRATE", "False", "postgres_auto_migrate", False),
        ("METRICS_ENABLED", "1", "metrics_enabled", True),
        ("NATS_REALTIME_NAKBASEDELAY", "500ms", "realtime_nak_base_delay", 0.5),
        ("NATS_REALTIME_NAKMAXDELAY", "1m30s", "realtime_nak_max_delay", 90.0),
        ("POSTSCAN_DELAY", "1h", "postscan_delay", 3600.0),
        ("POSTSCAN_DELAY", "1.5h", "postscan_delay", 5400.0),
        ("POSTSCAN_DELAY", "0s", "postscan_delay", 0.0),
        ("NATS_DLQBASEDELAYMINUTES", "0.05", "dlq_base_delay_minutes", 0.05),
        ("NATS_DLQMAXACKPENDING", "-1", "dlq_max_ack_pending", -1),
        ("NATS_DLQMAXACKPENDING", "1000", "dlq_max_ack_pending", 1000),
        ("NATS_STREAM_REPLICAS", "Auto", "stream_replicas", 0),
        ("NATS_STREAM_REPLICAS", "5", "stream_replicas", 5),
        ("NATS_STREAM_MAXCONSUMERS", "-1", "stream_max_consumers", -1),
        ("SERVER_PORT", "0", "server_port", 0),
        ("SERVER_BIND", "127.0.0.1", "server_bind", ("127.0.0.1",)),
        ("SERVER_BIND", "::", "server_bind", ("::",)),
        ("SERVER_BIND", " 127.0.0.1 , 0:0::1", "server_bind", ("127.0.0.1", "::1")),
        ("METRICS_JID_LIMIT", "0", "metrics_jid_limit", 0),
        ("NATS_URL", "nats://a:4222, tls://u:p@b", "nats_servers", ("nats://a:4222", "tls://u:p@b")),
        ("NATS_URL", "localhost:4222", "nats_servers", ("localhost:4222",)),
        ("LOG_LEVEL", "WARNING", "log_level", "warn"),
        ("LOG_LEVEL", "loud", "log_level", "info"),
        ("LOGLEVEL", "debug", "log_level", "debug"),
        ("NATS_REALTIME_SUBJECTLIST", "v1.chats.update, v1.chats.upsert", "realtime_subjects",
         ("v1.chats.update", "v1.chats.upsert")),
        ("COMPANY_ID", "*", "tenants", ()),
        ("COMPANY_ALLOW", "Kopi*, Toko?", "company_allow", ("Kopi*", "Toko?")),
        ("COMPANY_PROVISION", "Existing", "company_provision", False),
        ("COMPANY_ID", " KopiNusa , TokoBaru", "tenants", (Tenant("KopiNusa"), Tenant("TokoBaru"))),
        ("NATS_REALTIME_NAKBASEDELAY", "", "realtime_nak_base_delay", 1.0),
    ],
)  # fmt: skip
def test_value_is_read(name: str, text: str, attribute: str, value: object) -> None:
    assert getattr(settings(**{name: text}), attribute) == value


@pytest.mark.rule("SET-6")
@pytest.mark.parametrize(
    "dsn",
    [
        "postgres:///wa",
        "postgresql://app@[::1]:5432/wa",
        "postgres://app:p%2Fw@db1:5432,db2:5433/wa?sslmode=verify-full",
        "postgres://db",
    ],
)
def test_every_form_of_a_connection_url_is_taken(dsn: str) -> None:
    assert settings(POSTGRES_DSN=dsn).postgres_dsn == dsn


@pytest.mark.rule("SET-4")
def test_dsn_is_read_by_its_other_name_too() -> None:
    environ = {"COMPANY_ID": "KopiNusa", "DATABASE_POSTGRESDSN": "postgresql://other/wa"}
    assert Settings.from_env(environ).postgres_dsn == "postgresql://other/wa"
    assert Settings.from_env({**environ, **NEEDED}).postgres_dsn == NEEDED["POSTGRES_DSN"]


@pytest.mark.rule("SET-3")
@pytest.mark.parametrize("missing", NEEDED)
def test_missing_variable_is_refused(missing: str) -> None:
    with pytest.raises(SettingsError, match=f"{missing} is not set"):
        Settings.from_env({name: value for name, value in NEEDED.items() if name != missing})


@pytest.mark.rule("SET-2", "SET-5")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DATABASE_POSTGRESAUTOMIGRATE", "yes"),
        ("POSTGRES_POOL_SIZE", "0"),
        ("NATS_STREAM_REPLICAS", "2"),
        ("NATS_STREAM_REPLICAS", "three"),
        ("NATS_STREAM_MAXCONSUMERS", "0"),
        ("NATS_STREAM_MAXCONSUMERS", "-2"),
        ("NATS_REALTIME_NAKBASEDELAY", "5"),
        ("NATS_REALTIME_NAKBASEDELAY", "-1s"),
        ("NATS_REALTIME_NAKBASEDELAY", "1s 2s"),
        ("NATS_REALTIME_NAKBASEDELAY", "1d"),
        ("NATS_REALTIME_NAKBASEDELAY", "\u0661s"),  # a digit, but not one of ours
        ("NATS_REALTIME_NAKBASEDELAY", "31s"),  # more than the longest delay
        ("NATS_DLQBASEDELAYMINUTES", "5m"),
        ("NATS_DLQBASEDELAYMINUTES", "nan"),
        ("NATS_DLQBASEDELAYMINUTES", "6"),  # more than the longest delay
        ("NATS_REALTIME_ACKWAIT", "500ms"),
        ("NATS_DLQACKWAIT", "99999999h"),
        ("NATS_REALTIME_MAXDELIVER", "0"),
        ("NATS_REALTIME_MAXDELIVER", "2.5"),
        ("NATS_REALTIME_BATCHSIZE", "0"),
        ("NATS_REALTIME_BATCHSIZE", "5001"),
        ("NATS_HISTORICAL_BATCHSIZE", "101"),
        ("NATS_DLQBATCHSIZE", "1001"),
        ("NATS_DLQMAXACKPENDING", "0"),
        ("NATS_DLQMAXAGEDAYS", "-1"),
        ("SERVER_PORT", "65536"),
        ("SERVER_PORT", "http"),
        ("SERVER_BIND", "everywhere"),
        ("SERVER_BIND", "10.0.0.1:8080"),
        ("SERVER_BIND", "localhost"),
        ("SERVER_BIND", "[::1]"),
        ("SERVER_BIND", "127.0.0.1,"),
        ("SERVER_BIND", "::1,0::1"),
        ("SERVER_BIND", "0.0.0.0,127.0.0.1"),
        ("SERVER_BIND", "::1,::"),
        ("STOP_TIMEOUT", "28"),
        ("STOP_TIMEOUT", "0s"),
        ("NATS_CREDS", "/nowhere/user.creds"),
        ("NATS_NKEY_SEED", "/nowhere"),
        ("NATS_TLS_CA", "/nowhere"),
        ("METRICS_JID_LIMIT", "-1"),
        ("NATS_REALTIME_STREAM", "wa events"),
        ("NATS_REALTIME_STREAM", "dlq_stream"),  # the dead letters' own
        ("NATS_REALTIME_DURABLE", "wa.realtime_"),
        ("NATS_REALTIME_DURABLE", "wa_listener_"),  # the old durable's own
        ("NATS_REALTIME_SUBJECTLIST", "v1.chats.update,v1.history.chats"),
        ("NATS_REALTIME_SUBJECTLIST", "v1.chats.update,v1.chats.update"),
        ("NATS_DLQSUBJECT", "v1.*"),
        ("NATS_DLQSUBJECT", "v1"),
        ("NATS_DLQSUBJECT", "v1.chats.update"),
        ("COMPANY_ID", "Kopi.Nusa"),
        ("COMPANY_ID", "KopiNusa,*"),
        ("COMPANY_ALLOW", "Kopi Nusa"),
        ("COMPANY_EXCLUDE", "Kopi.*"),
        ("COMPANY_PROVISION", "never"),
        ("COMPANY_MAX", "0"),
        ("COMPANY_ID", "KopiNusa,"),
        ("COMPANY_ID", "KopiNusa,KopiNusa"),
        ("COMPANY_ID", "KopiNusa,kopinusa"),
        ("COMPANY_ID", "K" * 58),
        ("POSTGRES_DSN", "mysql://db"),
        ("POSTGRES_DSN", "postgres://app:pass/word@db/wa"),
        ("POSTGRES_DSN", "postgres://app@db:port/wa"),
        ("NATS_URL", "http://nats"),
        ("NATS_URL", "nats://nats:port"),
        ("NATS_URL", "nats://a,,nats://b"),
        ("PROMETHEUS_MULTIPROC_DIR", "/somewhere"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(**{name: text})
    assert [problem.split()[0] for problem in caught.value.problems] == [name]


@pytest.mark.rule("SET-1")
def test_one_message_names_every_wrong_variable() -> None:
    wrong = {
        "POSTGRES_DSN": "",
        "COMPANY_ID": "a b",
        "SERVER_PORT": "x",
        "NATS_DLQACKWAIT": "30",
        "METRICS_ENABLED": "maybe",
    }
    message = settings_error(**wrong)
    assert all(name in message for name in wrong)
    assert "\n" not in message


@pytest.mark.rule("SET-1")
@pytest.mark.parametrize(
    "wrong",
    [
        {"POSTGRES_DSN": "mysql://user:hunter2@db"},
        {"POSTGRES_DSN": "postgres://user:hunter2/x@db/wa"},
        {"POSTGRES_DSN": "postgres://user:hunter2@[::1/wa"},
        {"NATS_URL": "nats://user:hunter2@nats:port"},
        {"NATS_URL": "hunter2://nats"},
    ],
)
def test_secret_is_never_shown(wrong: dict[str, str]) -> None:
    assert "hunter2" not in settings_error(**wrong)
    assert "hunter2" not in repr(settings(NATS_URL="nats://user:hunter2@nats"))


@pytest.mark.rule("SUB-5")
def test_companies_that_share_a_schema_are_both_named() -> None:
    message = settings_error(COMPANY_ID="KopiNusa,TokoBaru,kopinusa")
    assert "'KopiNusa'" in message
    assert "'kopinusa'" in message
    assert "TokoBaru" not in message


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().server_port = 1  # type: ignore[misc]
