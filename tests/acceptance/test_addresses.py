"""A malformed address is refused by its variable, by every command and worker, unquoted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from producer.cli import cli
from tests.short import short

SECRET = "Geheim77"
GOOD = {
    "DATABASE_URL": "postgresql://me@127.0.0.1:1/d",
    "REDIS_URL": "redis://127.0.0.1:1/0",
}
POSTGRESQL = [
    f"postgresql://app:{SECRET}#x@h/d",
    f"postgresql://app:{SECRET}/x@h/d",
    f"postgresql://app:{SECRET}?x@h/d",
    f"postgresql://app:{SECRET}?x=1@h/d",
    f"postgresql://app:{SECRET}@x@h/d",
    f"postgresql://app:Str0ng@{SECRET}:wort@db/d",
    f"postgresql://app:{SECRET}:x@h/d",
    f"postgresql://app:{SECRET}%x@h/d",
    f"postgresql://app:{SECRET}%00@h/d",
    f"postgresql://app:{SECRET}%0Ahost=x@h/d",
    f"postgresql://app:{SECRET}%FF@h/d",
    f"postgresql://app:{SECRET} x@h/d",
    f"postgresql://app:{SECRET}",
    f"postgresql://app:x@h:{SECRET}/d",
    f"postgresql://app:{SECRET}@h:99999/d",
    f"postgresql://app:{SECRET}@a:1,b:2,c:x/d",
    f"postgresql://app:{SECRET}@a,b/d?port=1,2,3",
    f"postgresql://app:{SECRET}@[::1/d",
    f"postgresql://app:[{SECRET}]@h/d",
    f"postgresql://app:{SECRET}@h/d?ssl=require",
    f"postgresql+asyncpg://app:{SECRET}@h/d?prepared_statement_cache_size=0",
    f"postgresql://app:{SECRET}@h/d?schema=public",
    f"postgresql://app:{SECRET}@h/d?pgbouncer=true",
    f"postgresql://app:x@h/d?{SECRET}=1",
    f"postgresql://app:x@h/d?sslmode={SECRET}",
    f"postgresql://app:x@h/d?connect_timeout={SECRET}",
    f"postgresql://app:x@h/d?service={SECRET}",
    f"postgresql://app:{SECRET}@h/d?x",
    f"mysql://app:{SECRET}@h/d",
    f"host=h password={SECRET}",
    SECRET,
]
REDIS = [
    f"redis://:{SECRET}#x@h:1/0",
    f"redis://:{SECRET}/x@h:1/0",
    f"redis://user:{SECRET}?x@h:1/0",
    f"redis://:{SECRET}@x@h:1/0",
    f"redis://u:{SECRET}:x@h:1/0",
    f"redis://:{SECRET}%zz@h",
    f"redis://:{SECRET} x@h",
    f"redis://:[{SECRET}@h",
    f"redis://:x@h:{SECRET}/0",
    f"redis://:{SECRET}",
    f"redis://:x@h:1/{SECRET}",
    f"redis://:{SECRET}@h:1/-1",
    f"redis://:{SECRET}@h:1/0/1",
    f"redis://:{SECRET}@a:1,b:2/0",
    f"redis://:{SECRET}@h/0?db={SECRET}",
    f"rediss://:{SECRET}@h/0?ssl_cert_reqs={SECRET}",
    f"unix:///tmp/x?db={SECRET}",
    f"unix://:{SECRET}@h/tmp/x",
    f"sentinel://:{SECRET}@h:26379/0",
    f"redis+sentinel://:{SECRET}@h/0",
    f"redis+cluster://:{SECRET}@h/0",
    f"db+postgresql://u:{SECRET}@h/d",
    f"amqp://u:{SECRET}@h",
    f"rpc://{SECRET}",
]
HTTP = [
    f"http://me:{SECRET}#x@h/x",
    f"http://me:{SECRET}/x@h/x",
    f"http://me:{SECRET}@x@h/x",
    f"http://me:x@h:{SECRET}/x",
    f"http://me:{SECRET}@h:99999/x",
    f"http://me:{SECRET}@",
    f"http://me:{SECRET}@[::1/x",
    f"ftp://me:{SECRET}@h/x",
]
MALFORMED = [
    *(("DATABASE_URL", url) for url in POSTGRESQL),
    *(
        (variable, url)
        for variable in ("REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
        for url in REDIS
    ),
    *(
        (variable, url)
        for variable in (
            "MIGRATION_API_URLS",
            "MIGRATION_FLOWER_URL",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        )
        for url in HTTP
    ),
]
ARGUMENTS = {"backup": ["x"], "restore": ["x"], "forget": ["1"], "case": ["x"], "new": ["badges"]}


def commands(group: click.Group, *names: str) -> Iterator[list[str]]:
    """Each command of the product, with the arguments that it must have."""
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield [*names, name, *ARGUMENTS.get(name, [])]


@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_every_command_refuses_every_malformed_address(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (variable, url) in enumerate(MALFORMED):
        with monkeypatch.context() as environment:
            for name, value in (GOOD | {variable: url}).items():
                environment.setenv(name, value)
            more = ([], ["--json"], ["--debug"], ["--json", "--debug"])[number % 4]
            ended = CliRunner().invoke(cli, [*words, *more])
        assert ended.exit_code == 2, (variable, url, ended.output)
        assert variable in ended.output, (url, ended.output)
        assert SECRET not in ended.output, url
        assert "Traceback" not in ended.output
        assert isinstance(ended.exception, SystemExit)


WORKER, FLOWER = "celery -A worker worker", "celery -A worker flower"
CHECK = "producer check --json --debug"
WRONG = {
    "DATABASE_URL": POSTGRESQL[5],
    "REDIS_URL": REDIS[0],
    "CELERY_RESULT_BACKEND": REDIS[1],
    "MIGRATION_FLOWER_URL": HTTP[3],
}


@pytest.mark.parametrize(
    ("words", "variable", "url"),
    short(
        [
            (words, variable, url)
            for words in (WORKER, FLOWER, CHECK)
            for variable, url in WRONG.items()
        ],
        (WORKER, "DATABASE_URL", WRONG["DATABASE_URL"]),
        (WORKER, "CELERY_RESULT_BACKEND", WRONG["CELERY_RESULT_BACKEND"]),
        (FLOWER, "MIGRATION_FLOWER_URL", WRONG["MIGRATION_FLOWER_URL"]),
        (CHECK, "REDIS_URL", WRONG["REDIS_URL"]),
    ),
)
def test_a_worker_ends_at_once_and_says_which(
    words: str, variable: str, url: str, tmp_path: Path
) -> None:
    program, *arguments = words.split()
    ended = subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        env=os.environ | GOOD | {variable: url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert variable in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
