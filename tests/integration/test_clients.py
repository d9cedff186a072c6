"""What the product connects to is what pg_dump and psql connect to, whatever names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from models.postgres import addresses
from models.postgres import database as databases
from producer.backup import clients


@pytest.fixture
def parts(database: str) -> tuple[str, str]:
    """The folder of the server's socket, and the name of an empty database."""
    url = make_url(database)
    return str(url.query["host"]), str(url.database)


@pytest.mark.parametrize(
    ("url", "variables"),
    [
        ("postgresql://postgres@/{name}?host=/nowhere,{host}", {}),
        ("postgresql://postgres@/{name}?host=/nowhere&host={host}&port=1&port=5432", {}),
        (
            "postgres://postgres@/{name}?host=/nowhere,{host}&target_session_attrs=read-write"
            "&options=-csearch_path%3Dpg_catalog%2Cpublic",
            {},
        ),
        ("postgresql://", {"PGHOST": "{host}", "PGUSER": "postgres", "PGDATABASE": "{name}"}),
        ("postgresql:///{name}?service=mine", {"PGSERVICEFILE": "{file}"}),
        ("postgresql://", {"PGSERVICEFILE": "{file}", "PGSERVICE": "mine", "PGHOST": "/nowhere"}),
        ("postgresql://postgres@/{name}?host={host}", {"PGHOST": "/nowhere", "PGPORT": "1"}),
    ],
)
def test_every_reader_of_an_address_finds_the_same_database(
    parts: tuple[str, str],
    url: str,
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    host, name = parts
    services = tmp_path / "services"
    services.write_text(
        f"# ours\n[other]\nhost=/nowhere\n\n[mine]\nhost={host}\nuser=postgres\ndbname={name}\n"
    )
    filled = {"host": host, "name": name, "file": str(services)}
    if "PGPORT" in variables:
        url += "&port=5432"
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(**filled))
    address = url.format(**filled)
    engine = databases.create(address)
    with engine.connect() as connection:
        version = databases.check_reachable(engine)
        assert connection.scalar(text("SELECT current_database()")) == name
    programs = clients.find(version)
    programs.run("psql", "--no-psqlrc", "--command=CREATE TABLE public.made ()", url=address)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('public.made')"))
    engine.dispose()
    programs.run("pg_dump", f"--file={tmp_path / 'dump'}", "--no-password", url=address)
    assert "CREATE TABLE public.made" in (tmp_path / "dump").read_text()
    assert host in addresses.describe(address) and addresses.describe(address).endswith(name)


def test_a_password_is_in_no_file_and_no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "postgresql://me:secret%20word%20@h/d?sslmode=require&sslrootcert=%2Fa%2Fb.pem"
    with clients._environment(address) as environment:
        file = Path(environment["PGSERVICEFILE"])
        assert environment["PGPASSWORD"] == "secret word "
        assert file.stat().st_mode & 0o777 == 0o600
        assert "sslrootcert=/a/b.pem" in file.read_text()
        assert "secret" not in file.read_text()
    assert not file.exists()
    assert "PGPASSWORD" not in os.environ


@pytest.mark.parametrize("variable", ["PGSERVICE", "PGPORT"])
def test_what_libpqs_environment_has_wrong_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "none"))
    monkeypatch.setenv(variable, "secret-word")
    with pytest.raises(ValueError, match=variable) as refused:
        addresses.postgresql("postgresql://u@h/d")
    assert "secret-word" not in str(refused.value)
