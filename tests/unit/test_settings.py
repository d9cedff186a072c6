"""The environment is read once, validated, and refused by the name of the variable."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from models.errors import Misconfigured
from models.settings import load, parse_grants
from producer.connect import celery_url, result_url, verifying


def test_nothing_set_means_the_documented_defaults() -> None:
    settings = load()
    assert settings.database_url is None
    assert (settings.users_table, settings.batch_size) == ("users", "auto")
    assert settings.credit_grants == {
        "student": Decimal(100),
        "teacher": Decimal(500),
        "admin": Decimal(1000),
        "*": Decimal(100),
    }


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MIGRATION_BATCH_SIZE", "0"),
        ("MIGRATION_BATCH_SIZE", "1.5"),
        ("MIGRATION_USERS_TABLE", "a.b.c"),
        ("MIGRATION_USERS_TABLE", 'us"ers'),
        ("MIGRATION_CREDIT_GRANTS", "student=100"),
        ("MIGRATION_CREDIT_GRANTS", "*=NaN"),
        ("MIGRATION_CREDIT_GRANTS", "teacher=500,teacher=50,*=1"),
        ("MIGRATION_CREDIT_GRANTS", "*=1,*=2"),
        ("MIGRATION_CREDIT_GRANTS", "o'hara=1,*=1"),
        ("MIGRATION_API_URLS", "ftp://example.org"),
        ("MIGRATION_THROTTLE", "lag=fast"),
    ],
)
def test_a_wrong_value_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Misconfigured, match=variable) as refused:
        load()
    assert variable in refused.value.hint


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("DATABASE_URL", "mysql://secret-word@host/x"),
        ("REDIS_URL", "amqp://secret-word@host"),
    ],
)
def test_an_address_of_another_kind_is_refused_without_printing_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/d")
    monkeypatch.setenv("REDIS_URL", "redis://h")
    monkeypatch.setenv(variable, url)
    with pytest.raises(Misconfigured, match=variable) as refused:
        load()
    assert "secret-word" not in refused.value.message + refused.value.hint


def test_celery_addresses_override_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://h/d")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://broker")
    with pytest.raises(Misconfigured, match="REDIS_URL"):
        load()
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://results")
    assert load().redis_url is None


def test_grants_keep_their_cents() -> None:
    assert parse_grants("student=0.01, *=99999999.99") == {
        "student": Decimal("0.01"),
        "*": Decimal("99999999.99"),
    }


@pytest.mark.parametrize(
    ("url", "celery"),
    [
        ("redis://:secret@host:6379/1", "redis://:secret@host:6379/1"),
        ("rediss://host/0", "rediss://host/0"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix://me:secret@/run/r.sock", "redis+socket://me:secret@/run/r.sock"),
    ],
)
def test_every_redis_address_has_a_form_for_celery(url: str, celery: str) -> None:
    assert celery_url(url) == celery
    assert result_url(url).endswith(celery.removeprefix("redis+"))


def test_addresses_may_lie_in_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "database").write_text("postgresql://me:secret-word@h/d\n")
    (tmp_path / "redis").write_text("redis://:secret-word@h\n")
    monkeypatch.setenv("DATABASE_URL_FILE", str(tmp_path / "database"))
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "redis"))
    found = load()
    assert found.database_url and found.redis_url
    assert found.database_url.get_secret_value() == "postgresql://me:secret-word@h/d"
    assert "secret-word" not in repr(found)


def test_the_password_of_the_console_may_lie_in_a_file_and_is_no_short_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert load().console_password is None
    (tmp_path / "password").write_text("correct horse\n")
    monkeypatch.setenv("MIGRATION_CONSOLE_PASSWORD_FILE", str(tmp_path / "password"))
    found = load().console_password
    assert found and found.get_secret_value() == "correct horse"
    (tmp_path / "password").write_text("short")
    with pytest.raises(Misconfigured, match="MIGRATION_CONSOLE_PASSWORD: must have") as refused:
        load()
    assert "short" not in refused.value.message + refused.value.hint


def test_readers_of_the_console_have_a_password_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIGRATION_CONSOLE_READER_PASSWORD", "battery staple")
    assert load().console_reader_password
    monkeypatch.setenv("MIGRATION_CONSOLE_PASSWORD", "battery staple")
    with pytest.raises(Misconfigured, match="MIGRATION_CONSOLE_READER_PASSWORD: is the operators"):
        load()


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("redis://h/0", "redis://h/0"),
        ("unix:///tmp/x?db=1", "unix:///tmp/x?db=1"),
        ("rediss://u:p%2Fq@h:1/0", "rediss://u:p%2Fq@h:1/0?ssl_cert_reqs=required"),
        (
            "rediss://h/0?ssl_ca_certs=%2Fa%2Fb.pem",
            "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fa%2Fb.pem",
        ),
        ("rediss://h/0?ssl_cert_reqs=CERT_NONE", "rediss://h/0?ssl_cert_reqs=none"),
    ],
)
def test_a_certificate_is_verified_unless_the_address_says_else(url: str, full: str) -> None:
    assert verifying(url) == full


@pytest.mark.parametrize(
    ("content", "also", "said"),
    [
        ("", {}, "is empty"),
        (None, {}, "cannot be read: No such file or directory"),
        ("postgresql://h/d", {"DATABASE_URL": "postgresql://h/e"}, "are both set"),
        ("mysql://me:secret-word@h/d", {}, "must be a postgresql:// or postgres:// address"),
    ],
)
def test_a_file_that_holds_no_address_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: str | None,
    also: dict[str, str],
    said: str,
) -> None:
    file = tmp_path / "database"
    if content is not None:
        file.write_text(content)
    for name, value in ({"DATABASE_URL_FILE": str(file), "REDIS_URL": "redis://h"} | also).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured, match=said) as refused:
        load()
    assert "DATABASE_URL" in refused.value.message
    assert "secret-word" not in refused.value.message + refused.value.hint


def test_a_variable_of_somebody_elses_does_not_reach_what_is_no_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COPIES", "3")
    found = load()
    copied = found.with_copies({"users": "elsewhere.users"})
    assert (found.copies, copied.copies) == ({}, {"users": "elsewhere.users"})
