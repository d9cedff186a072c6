"""A backup comes back whole, or says at once that it cannot; an unfinished one is none."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text

from models.errors import Misconfigured
from producer.backup import clients, create, keyspace, restore
from producer.embedded import directories
from tests import variants
from tests.acceptance.conftest import Product
from tests.conftest import address
from tests.wait import until

USERS = 200
KILLS = 20
# The application, which is another user, reads its configuration.
MODES = {".": 0o755, "app.yml": 0o644, "start.sh": 0o755}


@pytest.fixture
def school(product: Product, own_redis: directories.Place) -> Iterator[Product]:
    """A school, a Redis with a key of every type, and a configuration file."""
    product.environment["REDIS_URL"] = address(own_redis)
    with product.engine.begin() as connection:
        variants.PLAIN.build(connection, USERS)
        connection.execute(
            text('CREATE SCHEMA other; CREATE TABLE other."Odd %" (n serial, x bytea)')
        )
        connection.execute(text("INSERT INTO other.\"Odd %\" (x) VALUES ('\\x00ff'), (NULL)"))
    with closing(redis.Redis.from_url(address(own_redis))) as client:
        fill(client)
    config = product.folder / "config"
    config.mkdir()
    (config / "app.yml").write_text("answer: 42\n")
    (config / "start.sh").write_text("true\n")
    for name, mode in MODES.items():
        (config / name).chmod(mode)
    yield product


def fill(client: redis.Redis) -> None:
    """A key of every type, in two databases, with and without an end."""
    client.set("string", b"\x00\xff binary")
    client.set("short-lived", "gone in a day", ex=86_400)
    client.rpush("list", *range(300))
    client.sadd("set", *(f"member {n}" for n in range(300)))
    client.zadd("zset", {"a": 1.5, "b": -2, "c": float("inf")})
    client.hset("hash", mapping={f"field {n}": n for n in range(300)})
    client.xadd("stream", {"event": "login"}, id="1-1")
    client.xadd("stream", {"event": "logout"}, id="2-1")
    client.xgroup_create("stream", "readers", id="1-1")
    client.xreadgroup("readers", "one", {"stream": ">"})
    client.pfadd("hyperloglog", "a", "b")
    client.geoadd("places", (13.4, 52.5, "Berlin"))
    client.setbit("bits", 1000, 1)
    client.select(3)
    client.set("elsewhere", "database 3")
    client.select(0)


def ends(product: Product) -> dict[bytes, bool]:
    with closing(redis.Redis.from_url(product.environment["REDIS_URL"])) as client:
        return {key: client.pttl(key) > 0 for key in client.scan_iter()}


def state(product: Product) -> dict[str, Any]:
    with product.engine.connect() as connection, connection.begin():
        found = create.describe(connection)
    places = keyspace.places({"redis": product.environment["REDIS_URL"]}, whole_servers=True)
    return found | {"redis": {place.number: keyspace.digests(place) for place in places}}


def harm(product: Product) -> None:
    """A migration, and whatever else may have become of database, Redis and configuration."""
    with product.worker():
        assert product.run("enqueue-all", "--wait").status == 3
    with product.engine.begin() as connection:
        connection.execute(text("DELETE FROM projects; CREATE TABLE later (n int)"))
    with closing(redis.Redis.from_url(product.environment["REDIS_URL"])) as client:
        client.delete("list")
        client.set("later", "x")
    (product.folder / "config" / "app.yml").write_text("answer: 43\n")


def test_a_backup_comes_back_row_by_row_and_key_by_key(school: Product) -> None:
    before, lasting = state(school), ends(school)
    made = school.run("backup", "safe", "--json")
    assert made.status == 0, made.err
    assert made.json["manifest"]["tables"] == before["tables"]
    folder = school.folder / "safe"
    assert made.json["manifest"]["redis_version"].startswith("valkey 9.")
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (create.MANIFEST, create.SUMS)
    }
    assert made.json["manifest"]["bytes"] == sizes
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    harm(school)
    refused = school.run("restore", "safe", "--json")
    assert (refused.status, refused.json["error"]["kind"]) == (2, "misconfigured")
    for word in ("public.users (200 rows)", "keys of Redis", "database 0", "config"):
        assert word in refused.json["error"]["message"]
    assert refused.json["database"] in refused.json["error"]["message"]
    restored = school.run("restore", "safe", "--yes", "--json")
    assert restored.status == 0, restored.err
    assert state(school) == before
    assert ends(school) == lasting
    config = school.folder / "config"
    assert (config / "app.yml").read_text() == "answer: 42\n"
    assert {name: stat.S_IMODE((config / name).stat().st_mode) for name in MODES} == MODES
    # The size, and the configuration that was saved, are said.
    assert " MB in " in made.err and str(school.folder / "config") in made.err
    # It is a database like any other again.
    with school.worker():
        assert school.run("enqueue-all", "--wait").status == 3


def put(school: Product, database: int, key: str, value: str) -> None:
    with keyspace.connected(school.environment["REDIS_URL"], database) as client:
        client.set(key, value)


def keys(school: Product, database: int) -> set[bytes]:
    with keyspace.connected(school.environment["REDIS_URL"], database) as client:
        return set(client.keys())


def test_only_the_redis_databases_that_the_settings_name_are_touched(school: Product) -> None:
    url = school.environment["REDIS_URL"]
    school.environment |= {"REDIS_URL": url.replace("db=0", "db=4")}
    school.environment |= {"CELERY_BROKER_URL": url.replace("db=0", "db=5")}
    put(school, 4, "mine", "x")
    put(school, 5, "message", "x")
    made = school.run("backup", "safe", "--json")
    saved = made.json["manifest"]["redis_databases"].values()
    assert [(each["database"], each["roles"], each["keys"]) for each in saved] == [
        (4, ["redis", "results"], 1),
        (5, ["broker"], 1),
    ]
    assert "database 5" in made.err
    for database in (0, 3, 4, 5, 6):
        put(school, database, "later", "x")
    others = {database: keys(school, database) for database in (0, 3, 6)}
    restored = school.run("restore", "safe", "--yes")
    assert restored.status == 0, restored.err
    assert (keys(school, 4), keys(school, 5)) == ({b"mine"}, {b"message"})
    # Into other databases, as a rehearsal on a copy does: what was the broker's is the broker's.
    school.environment |= {"REDIS_URL": url.replace("db=0", "db=7")}
    school.environment |= {"CELERY_BROKER_URL": url.replace("db=0", "db=8")}
    assert school.run("restore", "safe", "--yes", "--all-redis-databases").status == 0
    assert (keys(school, 7), keys(school, 8)) == ({b"mine"}, {b"message"})
    assert (keys(school, 4), keys(school, 5)) == ({b"mine"}, {b"message"})
    assert {database: keys(school, database) for database in others} == others


def test_all_databases_of_a_redis_are_a_choice_and_each_is_listed(school: Product) -> None:
    before = state(school)
    assert set(before["redis"]) == {0, 3}
    made = school.run("backup", "safe", "--all-redis-databases", "--json")
    assert made.status == 0, made.err
    put(school, 3, "later", "x")
    put(school, 6, "later", "x")
    asked = school.run("restore", "safe", "--all-redis-databases", "--json")
    for words in ("2 keys of Redis", "database 3", "1 key of Redis", "database 6"):
        assert words in asked.json["error"]["message"]
    some = school.run("restore", "safe", "--yes")
    assert some.status == 0 and "Left out" in some.err and "database 3" in some.err
    assert keys(school, 3) == {b"elsewhere", b"later"}
    assert school.run("restore", "safe", "--yes", "--all-redis-databases").status == 0
    assert state(school) == before


def as_version_0_1(folder: Path) -> None:
    """Make a backup what version 0.1 wrote: all databases of the server, by their numbers."""
    manifest = json.loads((folder / create.MANIFEST).read_text())
    numbers = {name: str(of["database"]) for name, of in manifest["redis_databases"].items()}
    lines = [json.loads(line) for line in (folder / create.REDIS).read_text().splitlines()]
    for line in lines:
        line["database"] = int(numbers[line.pop("place")])
    (folder / create.REDIS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest["redis"] = {numbers[name]: of for name, of in manifest["redis"].items()}
    for name in ("redis_databases", "all_redis_databases"):
        del manifest[name]
    (folder / create.MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    sums = "".join(f"{digest}  {name}\n" for name, digest in create.hashes(folder).items())
    (folder / create.SUMS).write_text(sums)


def test_a_backup_of_version_0_1_gives_back_the_configured_database_only(school: Product) -> None:
    before = state(school)
    assert school.run("backup", "safe", "--all-redis-databases").status == 0
    as_version_0_1(school.folder / "safe")
    put(school, 0, "later", "x")
    put(school, 3, "later", "x")
    some = school.run("restore", "safe", "--yes")
    assert some.status == 0, some.err
    assert "Left out" in some.err and "database 3" in some.err
    assert b"later" not in keys(school, 0) and keys(school, 3) == {b"elsewhere", b"later"}
    assert school.run("restore", "safe", "--yes", "--all-redis-databases").status == 0
    assert state(school) == before


def test_a_flipped_byte_in_any_file_is_caught_before_anything_is_touched(school: Product) -> None:
    assert school.run("backup", "safe").status == 0
    before = state(school)
    folder = school.folder / "safe"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            flipped = bytearray(content)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(restore.Damaged):
                restore.verify(folder)
        path.write_bytes(content)
    (folder / create.REDIS).write_bytes(b"")
    damaged = school.run("restore", "safe", "--yes", "--json")
    assert (damaged.status, damaged.json["error"]["kind"]) == (1, "damaged_backup")
    assert create.REDIS in damaged.json["error"]["message"]
    assert state(school) == before


def test_a_killed_backup_leaves_nothing_that_looks_complete(school: Product) -> None:
    for wanted in ("database", "database/toc.dat", "redis.jsonl", "manifest.json", "SHA256SUMS"):
        process = school.start("backup", "safe")

        def is_there(process=process, wanted=wanted) -> bool:  # type: ignore[no-untyped-def]
            places = school.folder.glob(f".safe.unfinished-*/{wanted}")
            return any(places) or process.poll() is not None

        until(is_there)
        process.kill()
        process.communicate()
        if (school.folder / "safe").exists():
            # It was quicker than the signal: then it is complete.
            restore.verify(school.folder / "safe")
            shutil.rmtree(school.folder / "safe")
            continue
        assert school.run("restore", "safe", "--json").json["error"]["kind"] == "misconfigured"
    made = school.run("backup", "safe")
    assert made.status == 0, made.err
    assert not list(school.folder.glob(".safe.unfinished-*"))
    again = school.run("backup", "safe", "--json")
    assert (again.status, again.json["error"]["kind"]) == (2, "misconfigured")


@pytest.mark.long
def test_a_backup_that_is_killed_at_any_moment_is_complete_or_none(school: Product) -> None:
    started = time.monotonic()
    assert school.run("backup", "whole").status == 0
    total = time.monotonic() - started
    kills = 0
    for moment in range(1, KILLS + 1):
        process = school.start("backup", "safe")
        try:
            # From where Python has started to where it is over.
            process.wait(total * (0.4 + 0.65 * moment / KILLS))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
        # Whatever the pg_dumps of those before still do.
        if (school.folder / "safe").exists():
            restore.verify(school.folder / "safe")
            shutil.rmtree(school.folder / "safe")
        else:
            with pytest.raises(Misconfigured, match="is not a backup"):
                restore.verify(school.folder / "safe")
    # How many come in time depends on the machine.
    assert kills
    assert school.run("backup", "safe").status == 0
    restore.verify(school.folder / "safe")


def test_no_password_is_on_a_command_line_or_in_the_backup(school: Product) -> None:
    url = school.environment["DATABASE_URL"].replace("postgres@", "postgres:secret-word@")
    process = school.start("backup", "safe", DATABASE_URL=url)
    seen: set[str] = set()
    while process.poll() is None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.add(entry.read_text())
            except OSError:
                continue
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert any("pg_dump" in line for line in seen)
    assert not any("secret-word" in line for line in (*seen, out, err))
    files = (path for path in (school.folder / "safe").rglob("*") if path.is_file())
    assert not any(b"secret-word" in path.read_bytes() for path in files)


def test_a_key_that_redis_refuses_is_said(own_redis: directories.Place, tmp_path: Path) -> None:
    line = {
        "place": "1",
        "key": base64.b64encode(b"key").decode(),
        "expires_at_ms": None,
        "value": base64.b64encode(b"no dump").decode(),
    }
    (tmp_path / "keys").write_text(json.dumps(line) + "\n")
    place = keyspace.Place(address(own_redis), 0)
    with pytest.raises(keyspace.NotRestored, match="database 0 refuses a key"):
        keyspace.load(tmp_path / "keys", {"1": place}, [place])


def test_a_server_newer_than_every_client_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="No pg_dump of version 99 or newer"):
        clients.find(990000)
