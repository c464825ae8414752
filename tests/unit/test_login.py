"""Files that prove who we are to NATS, checked at the start: a wrong one is named, and never shown."""

from __future__ import annotations

import nkeys  # type: ignore[import-untyped]
import pytest
import trustme

from streams.config.settings import Settings, SettingsError

NEEDED = {"COMPANY_ID": "KopiNusa", "POSTGRES_DSN": "postgres://app:hunter2@db:5432/wa"}
SEED = bytes(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)).decode()
CREDS = f"""-----BEGIN NATS USER JWT-----
eyJ0eXAiOiJKV1QifQ.e30.c2ln
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
{SEED}
------END USER NKEY SEED------
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: good files by the variable that takes them, and some that are none."""
    folder = tmp_path_factory.mktemp("login")
    authority = trustme.CA()
    ours, other = authority.issue_cert("us@example.org"), authority.issue_cert("them@example.org")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    ours.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    ours.private_key_pem.write_to_path(str(folder / "key.pem"))
    other.private_key_pem.write_to_path(str(folder / "other.pem"))
    texts = {"user.creds": CREDS, "seed": f"{SEED}\n", "rubbish": f"hunter2 {SEED[:20]}", "empty": ""}
    for name, text in texts.items():
        (folder / name).write_text(text)
    names = {
        "NATS_CREDS": "user.creds",
        "NATS_NKEY_SEED": "seed",
        "NATS_TLS_CA": "ca.pem",
        "NATS_TLS_CERT": "cert.pem",
        "NATS_TLS_KEY": "key.pem",
        "other": "other.pem",
        "rubbish": "rubbish",
        "empty": "empty",
        "folder": "",
    }
    return {name: str(folder / file) for name, file in names.items()}


def problems(**settings: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({**NEEDED, **settings})
    return caught.value.problems


def test_files_that_fit_are_taken(files: dict[str, str]) -> None:
    names = ("NATS_CREDS", "NATS_TLS_CA", "NATS_TLS_CERT", "NATS_TLS_KEY")
    login = Settings.from_env({**NEEDED, **{name: files[name] for name in names}}).login

    options = login.options()
    assert login.tls
    assert options["user_credentials"] == files["NATS_CREDS"]
    assert set(options) == {"user_credentials", "tls"}
    seeded = Settings.from_env({**NEEDED, "NATS_NKEY_SEED": files["NATS_NKEY_SEED"]}).login
    assert seeded.options() == {"nkeys_seed": files["NATS_NKEY_SEED"]}


def test_without_files_there_is_nothing_to_log_in_with() -> None:
    assert Settings.from_env(NEEDED).login.options() == {}


@pytest.mark.parametrize("name", ["NATS_CREDS", "NATS_NKEY_SEED", "NATS_TLS_CA"])
@pytest.mark.parametrize("file", ["rubbish", "empty", "folder", "other"])
def test_a_file_that_is_something_else_is_named_and_not_shown(
    files: dict[str, str], name: str, file: str
) -> None:
    [problem] = problems(**{name: files[file]})

    assert problem.startswith(f"{name} ")
    assert "expected" in problem or "cannot be read" in problem
    assert "hunter2" not in problem
    assert SEED[:20] not in problem


@pytest.mark.parametrize("name", ["NATS_CREDS", "NATS_NKEY_SEED", "NATS_TLS_CA"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    assert problems(**{name: "/nowhere/file"}) == (
        f"{name} names a file that cannot be read: No such file or directory",
    )


def test_certificate_and_key_come_together_and_fit(files: dict[str, str]) -> None:
    cert, key = files["NATS_TLS_CERT"], files["NATS_TLS_KEY"]

    assert problems(NATS_TLS_CERT=cert) == (
        "NATS_TLS_KEY is not set: expected a file for it beside NATS_TLS_CERT",
    )
    assert problems(NATS_TLS_KEY=key) == (
        "NATS_TLS_CERT is not set: expected a file for it beside NATS_TLS_KEY",
    )
    for other in (files["other"], files["rubbish"]):
        assert problems(NATS_TLS_CERT=cert, NATS_TLS_KEY=other) == (
            "NATS_TLS_CERT and NATS_TLS_KEY are no pair: expected a certificate and its key, without passphrase",
        )


def test_two_kinds_of_credentials_are_one_too_many(files: dict[str, str]) -> None:
    [problem] = problems(NATS_CREDS=files["NATS_CREDS"], NATS_NKEY_SEED=files["NATS_NKEY_SEED"])

    assert problem == "NATS_CREDS and NATS_NKEY_SEED are both set: expected one of them"
