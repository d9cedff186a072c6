"""The only reader of the environment: every setting, its default, and its validation."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from models import endpoints, environment
from models.errors import Misconfigured
from models.grants import parse_grants
from models.postgres import addresses
from models.postgres.load import Limits, parse_limits
from models.window import Window
from models.window import parse as parse_window

DEFAULT_MIGRATION = "models.dashboard:MIGRATION"
DEFAULT_FLOWER_URL = "http://127.0.0.1:5555"
DEFAULT_GRANTS = "student=100,teacher=500,admin=1000,*=100"
# What may hold a password: each may lie in a file instead, named by the variable with _FILE.
SECRETS = (
    "DATABASE_URL",
    "REDIS_URL",
    "CELERY_BROKER_URL",
    "CELERY_RESULT_BACKEND",
    "FLOWER_BASIC_AUTH",
    "MIGRATION_CONSOLE_PASSWORD",
    "MIGRATION_CONSOLE_READER_PASSWORD",
    "MIGRATION_API_URLS",
    "MIGRATION_FLOWER_URL",
    "MIGRATION_NOTIFY_URL",
)
TABLE_NAMES = tuple(f"MIGRATION_{name}_TABLE" for name in ("USERS", "SUBSCRIPTIONS", "PROJECTS"))
SHORTEST_PASSWORD = 10
MAX_BATCH_SIZE = 100_000
# No quote, colon or percent sign: none of them could be told from SQL's own.
_TABLE_NAME = re.compile(r"(?:[^.\s\":%][^.\":%]*\.)?[^.\s\":%][^.\":%]*")


class Settings(BaseModel):
    """Settings as read from the environment; field aliases are the variables' names."""

    model_config = ConfigDict(frozen=True)

    database_url: SecretStr | None = Field(
        None,
        alias="DATABASE_URL",
        description="The dashboard's PostgreSQL, 12 or newer: `postgresql://` or `postgres://`,"
        " with libpq's parameters, several hosts"
        " (`//u@a:5432,b:5432/d?target_session_attrs=read-write`) or a `service`; what it lacks"
        " comes from libpq's environment (`PGHOST`, `PGPASSFILE`, ...)."
        " Together with a Redis. With neither, `demo` starts embedded servers of its own, and other"
        " commands use those that `MIGRATION_HOME` holds already, if any.",
    )
    redis_url: SecretStr | None = Field(
        None,
        alias="REDIS_URL",
        description="Redis 6 or newer, or Valkey, as broker and for results: `redis://`,"
        " `rediss://` (certificates are verified) or `unix://`. One primary:"
        " neither a cluster nor a Sentinel.",
    )
    broker_url: SecretStr | None = Field(
        None,
        alias="CELERY_BROKER_URL",
        description="Another Redis for the messages, instead of `REDIS_URL`.",
    )
    result_backend: SecretStr | None = Field(
        None,
        alias="CELERY_RESULT_BACKEND",
        description="Another Redis for results and chords, instead of `REDIS_URL`.",
    )
    migration: str = Field(
        DEFAULT_MIGRATION,
        alias="MIGRATION",
        description="The migration to run, as `package.module:NAME`.",
    )
    home: Path = Field(
        Path(".migration"),
        alias="MIGRATION_HOME",
        description="A folder for the data of the embedded servers, for reports, and for what the"
        " demonstration leaves.",
    )
    users_table: str = Field(
        "users",
        alias="MIGRATION_USERS_TABLE",
        description="The legacy table of users, also as `schema.table`.",
    )
    subscriptions_table: str = Field(
        "gpt_subscriptions",
        alias="MIGRATION_SUBSCRIPTIONS_TABLE",
        description="The legacy table of GPT subscriptions, also as `schema.table`; `none` if there"
        " is no such table.",
    )
    projects_table: str = Field(
        "projects",
        alias="MIGRATION_PROJECTS_TABLE",
        description="The legacy table of projects, also as `schema.table`; `none` if there is no"
        " such table.",
    )
    mapping: str = Field(
        "",
        alias="MIGRATION_MAPPING",
        description="A TOML file with the names and columns of a dashboard of another shape, or the"
        " name of a mapping that is shipped ([mapping.md](mapping.md)). A run keeps what it said.",
    )
    batch_size: int | Literal["auto"] = Field(
        "auto",
        alias="MIGRATION_BATCH_SIZE",
        description="Users or projects a batch, from 1 to 100000; `auto` sizes each batch by what"
        " the last ones took, to about two seconds.",
    )
    error_budget: int = Field(
        5,
        alias="MIGRATION_ERROR_BUDGET",
        ge=1,
        description="Batches that fail with one and the same error, after which a run pauses.",
    )
    credit_grants: dict[str, Decimal] = Field(
        DEFAULT_GRANTS,
        alias="MIGRATION_CREDIT_GRANTS",
        validate_default=True,
        description="Credits that a user gets, by type of user; `*` is any other type. A type that"
        " no user can have is refused before a run. A run keeps what was set when it was opened.",
    )
    throttle: Limits = Field(
        "",
        alias="MIGRATION_THROTTLE",
        validate_default=True,
        description="Limits beyond which workers begin no batch; name those that change, a number"
        " or `off` each, or `off` for all. `lag` of a standby, `commit` latency and the oldest"
        " `transaction` of others in seconds, `archive` in WAL segments that wait, sessions that"
        " wait for `locks`, share of `connections` in use. `unreadable=stop` waits also where the"
        " role may not see a signal.",
    )
    window: Window | None = Field(
        "",
        alias="MIGRATION_WINDOW",
        validate_default=True,
        description="Hours in which workers begin batches, as `22:00-06:00 Europe/Berlin` (UTC"
        " without a zone), by the database's clock; always, where it is not set. A rollback does"
        " not wait for it.",
    )
    notify_url: SecretStr | None = Field(
        None,
        alias="MIGRATION_NOTIFY_URL",
        description="Where to send a message when a run ends or needs a human, as"
        " [apprise](https://github.com/caronc/apprise) writes addresses, several with spaces"
        " between; needs the extra `dashboard-migration[notify]`.",
    )
    notify_command: str = Field(
        "",
        alias="MIGRATION_NOTIFY_COMMAND",
        description="A command that gets the message on stdin, run without a shell.",
    )
    notify_minutes: int = Field(
        15,
        alias="MIGRATION_NOTIFY_MINUTES",
        ge=1,
        description="Minutes without a batch at work, after which an open run needs a human.",
    )
    log_format: Literal["logfmt", "json"] = Field(
        "logfmt",
        alias="MIGRATION_LOG_FORMAT",
        description="How workers write their logs, a line each: `logfmt` (`key=value`) or `json`.",
    )
    api_urls: tuple[str, ...] = Field(
        (),
        alias="MIGRATION_API_URLS",
        description="Endpoints of the dashboard, with commas between: `health` asks whether they"
        " answer, `performance` how fast, `check` which FastAPI it is.",
    )
    # OpenTelemetry's own variable, with its sisters: traces go there, as OTLP over HTTP.
    otlp_endpoint: str | None = Field(
        None,
        alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where traces go, as OTLP over HTTP; needs the extra"
        " `dashboard-migration[tracing]`. Without it there are no traces.",
    )
    flower_url: str = Field(
        DEFAULT_FLOWER_URL,
        alias="MIGRATION_FLOWER_URL",
        description="Where `health` asks for Flower.",
    )
    flower_auth: SecretStr | None = Field(
        None,
        alias="FLOWER_BASIC_AUTH",
        description="Flower's login, `user:password`, several with commas between. Without one it"
        " answers this machine only.",
    )
    console_password: SecretStr | None = Field(
        None,
        alias="MIGRATION_CONSOLE_PASSWORD",
        description="What `serve` asks for, ten characters or more; without it, one is made up at"
        " each start and shown.",
    )
    console_reader_password: SecretStr | None = Field(
        None,
        alias="MIGRATION_CONSOLE_READER_PASSWORD",
        description="A second password for `serve`, of ten characters or more: who logs in with it"
        " sees runs, lists and reports, and changes nothing. Without it, there is no such login.",
    )

    def named(self, variable: str) -> str:
        """The value of a setting by its variable, or of a migration's own variable; "" for none."""
        for name, field in Settings.model_fields.items():
            if field.alias == variable:
                return str(getattr(self, name))
        return os.environ.get(variable, "") if variable else ""

    def sets(self, variable: str) -> bool:
        """Whether a setting, by its variable, is set; not where it has its default."""
        return any(Settings.model_fields[name].alias == variable for name in self.model_fields_set)

    # A trial's copies. Private: it is no setting.
    _copies: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def copies(self) -> dict[str, str]:
        """The tables that stand in for the sources, by plural; none but in a trial."""
        return self._copies

    def with_copies(self, names: dict[str, str]) -> Settings:
        """The same settings over these tables instead of the sources."""
        found = self.model_copy()
        found._copies = names
        return found

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, url: SecretStr | None) -> SecretStr | None:
        if url:
            addresses.postgresql(url.get_secret_value())
        return url

    @field_validator("redis_url", "broker_url", "result_backend")
    @classmethod
    def _is_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url:
            endpoints.redis(url.get_secret_value())
        return url

    @field_validator("console_password", "console_reader_password")
    @classmethod
    def _is_long(cls, password: SecretStr | None) -> SecretStr | None:
        if password and len(password.get_secret_value()) < SHORTEST_PASSWORD:
            raise ValueError(f"must have at least {SHORTEST_PASSWORD} characters")
        return password

    @field_validator("users_table", "subscriptions_table", "projects_table")
    @classmethod
    def _is_table_name(cls, name: str) -> str:
        if not _TABLE_NAME.fullmatch(name):
            raise ValueError("must be a table's name, or schema.table")
        return name

    @field_validator("batch_size")
    @classmethod
    def _is_batch_size(cls, size: int | str) -> int | str:
        if isinstance(size, int) and not 1 <= size <= MAX_BATCH_SIZE:
            raise ValueError(f"must be 'auto' or a whole number from 1 to {MAX_BATCH_SIZE}")
        return size

    @field_validator("credit_grants", mode="before")
    @classmethod
    def _parse_grants(cls, text: object) -> object:
        return parse_grants(text) if isinstance(text, str) else text

    @field_validator("throttle", mode="before")
    @classmethod
    def _parse_throttle(cls, text: object) -> object:
        return parse_limits(text) if isinstance(text, str) else text

    @field_validator("window", mode="before")
    @classmethod
    def _parse_window(cls, text: object) -> object:
        return parse_window(text) if isinstance(text, str) else text

    @field_validator("notify_command")
    @classmethod
    def _is_command(cls, command: str) -> str:
        try:
            shlex.split(command)
        except ValueError:
            raise ValueError("has a quote that is not closed") from None
        return command

    @field_validator("api_urls", mode="before")
    @classmethod
    def _parse_urls(cls, text: object) -> object:
        if not isinstance(text, str):
            return text
        urls = tuple(part.strip() for part in text.split(",") if part.strip())
        for number, url in enumerate(urls, 1):
            try:
                endpoints.http(url)
            except ValueError as refused:
                # By its place: it may hold a password.
                raise ValueError(
                    f"address {number} (they have commas between): {refused}"
                ) from None
        return urls

    @field_validator("flower_auth")
    @classmethod
    def _is_login(cls, auth: SecretStr | None) -> SecretStr | None:
        for login in auth.get_secret_value().split(",") if auth else ():
            user, _, password = login.partition(":")
            if not (user.strip() and password):
                raise ValueError("must be user:password, several with commas between")
        return auth

    @field_validator("flower_url", "otlp_endpoint")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        return url and endpoints.http(url)

    @model_validator(mode="after")
    def _two_passwords(self) -> Settings:
        if self.console_reader_password and self.console_reader_password == self.console_password:
            raise ValueError("MIGRATION_CONSOLE_READER_PASSWORD: is the operators' password too")
        return self

    @model_validator(mode="after")
    def _both_servers_or_none(self) -> Settings:
        has_redis = bool(self.redis_url or (self.broker_url and self.result_backend))
        if self.database_url and not has_redis:
            raise ValueError("REDIS_URL: missing, while DATABASE_URL is set")
        if not self.database_url and (self.redis_url or self.broker_url or self.result_backend):
            raise ValueError("DATABASE_URL: missing, while a Redis address is set")
        return self


def load() -> Settings:
    """Read and validate the environment; raises Misconfigured naming each wrong variable."""
    empty = {
        name: "is empty: name the table"
        for name in TABLE_NAMES
        if name in os.environ and not os.environ[name].strip()
    }
    try:
        found = Settings.model_validate(environment.read(_names(), SECRETS))
    except ValidationError as invalid:
        raise _refused(empty | dict(map(_problem, invalid.errors()))) from None
    if empty:
        raise _refused(empty)
    return found


def _names() -> list[str]:
    return [field.alias for field in Settings.model_fields.values() if field.alias]


def unknown() -> list[str]:
    """A line for each MIGRATION_ variable of the environment that is no setting."""
    known = {*_names(), *(f"{name}_FILE" for name in SECRETS)}
    strange = {name for name in os.environ if name.startswith("MIGRATION_")} - known
    found = []
    for name in sorted(strange):
        near = difflib.get_close_matches(name, known, n=1)
        meant = f": did you mean {near[0]}?" if near else ", and has no effect"
        found.append(f"{name} is not a setting{meant}")
    return found


def _problem(error: ErrorDetails) -> tuple[str, str]:
    """The variable of a validation's error, and what is wrong with it; no value is quoted."""
    where = ".".join(str(part) for part in error["loc"][:1])
    reason = error["msg"].removeprefix("Value error, ")
    if not where:
        where, _, reason = reason.partition(": ")
    if where == "MIGRATION_BATCH_SIZE":
        reason = f"must be 'auto' or a whole number from 1 to {MAX_BATCH_SIZE}"
    return where, reason


def _refused(problems: dict[str, str]) -> Misconfigured:
    names = " and ".join(problems)
    is_missing = any(reason.startswith("missing") for reason in problems.values())
    return Misconfigured(
        "\n".join(f"{name}: {reason}" for name, reason in problems.items()),
        hint="Set both DATABASE_URL and REDIS_URL, or neither to use the embedded servers."
        if is_missing
        else f"Correct {names}{'' if problems.keys() & SECRETS else ', or unset it'}.",
    )
