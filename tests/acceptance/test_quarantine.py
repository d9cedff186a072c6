"""The list of quarantined rows: whole, by reason, as CSV; what is accepted, and taken back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from producer import embedded
from producer.demo import sample
from tests.acceptance.conftest import Product, make
from tests.conftest import fresh_database


@pytest.fixture(scope="module")
def ended(servers: embedded.Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """The product after a run over dirty rows."""
    redis_url = servers.redis_url.replace("db=0", "db=14")
    with fresh_database(servers.database_url) as database:
        for product in make(database, redis_url, tmp_path_factory.mktemp("product")):
            with product.engine.begin() as connection:
                sample.load(connection, 400)
            before = product.run("quarantine", "--preview", "--json")
            (product.folder / "preview.json").write_text(before.out)
            with product.worker():
                assert product.run("enqueue-all", "--wait").status == 3
            yield product


def listed(product: Product, *arguments: str) -> list[dict[str, str]]:
    ended = product.run("quarantine", *arguments, "--csv")
    assert ended.status == 0, ended.err
    return list(csv.DictReader(io.StringIO(ended.out)))


@pytest.mark.long
def test_a_pipe_gets_every_key_whole_and_on_stdout(ended: Product) -> None:
    rows = listed(ended)
    assert rows and {"entity", "key", "reason", "message", "attempts", "state"} == set(rows[0])
    shown = ended.run("quarantine", COLUMNS="40").out.splitlines()
    assert {row["key"] for row in rows} == {line.strip() for line in shown if line[0] == " "}
    for reason in {row["reason"] for row in rows}:
        assert any(f" {reason}, " in line for line in shown if line[0] != " ")


def test_filters_take_a_reason_an_entity_and_so_many_rows_of_each_reason(ended: Product) -> None:
    rows = listed(ended)
    for field, value in (("reason", "email_blank"), ("entity", "project")):
        assert listed(ended, f"--{field}", value) == [r for r in rows if r[field] == value] != []
    few = listed(ended, "--limit", "1")
    assert len(few) == len({(row["entity"], row["reason"]) for row in rows})
    assert ended.run("quarantine", "--limit", "1", "--json").json["rows"] != []
    assert listed(ended, "--reason", "no_such_reason") == []


def test_an_acceptance_is_taken_back_with_the_rows_that_depend_on_it(ended: Product) -> None:
    before = listed(ended)
    owner = next(row["key"] for row in before if row["reason"] == "email_blank")
    taken = ended.run("quarantine", "--accept", f"user:{owner}", "--json").json
    accepted = [row for row in listed(ended) if row["state"] == "accepted"]
    assert taken["accepted"] == len(accepted) > 1
    back = ended.run("quarantine", "--unaccept", f"user:{owner}", "--json").json
    assert back["unaccepted"] == len(accepted)
    assert listed(ended) == before
    # A retry would complete the run, had all rows been accepted.
    with ended.engine.begin() as connection:
        finished = connection.scalar(text("SELECT finished_at FROM migration.runs"))
        connection.execute(text("UPDATE migration.quarantine SET state = 'accepted'"))
        connection.execute(text("UPDATE migration.runs SET state = 'completed'"))
    assert ended.run("status").status == 0
    assert ended.run("quarantine", "--unaccept", "nobody").status == 2
    assert ended.run("status").status == 0
    assert ended.run("quarantine", "--unaccept", f"user:{owner}").status == 0
    assert ended.run("status").status == 3
    with ended.engine.begin() as connection:
        assert connection.scalar(text("SELECT finished_at FROM migration.runs")) == finished
        connection.execute(text("UPDATE migration.quarantine SET state = 'open'"))
    both = ended.run("quarantine", "--accept", owner, "--unaccept", owner)
    assert (both.status, "exclude each other" in both.err) == (2, True)


def test_a_preview_lists_before_the_run_what_it_quarantines_and_queries_that_find_it(
    ended: Product,
) -> None:
    before = json.loads((ended.folder / "preview.json").read_text())
    fields = ("entity", "key", "reason")
    wanted = {tuple(row[name] for name in fields) for row in listed(ended)}
    assert {tuple(row[name] for name in fields) for row in before["rows"]} == wanted
    with ended.engine.connect() as connection:
        for name, query in before["queries"].items():
            found = connection.exec_driver_sql(query.replace("%", "%%")).all()
            assert len(found) == sum(
                (entity, reason) == tuple(name.split()) for entity, _, reason in wanted
            )
