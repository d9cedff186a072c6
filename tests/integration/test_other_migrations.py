"""Migrations of other people, which the engine has never seen, keep all of its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models.engine import current
from models.errors import Misconfigured
from models.ledger.selection import Choice
from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings
from producer.reports import differing
from producer.runs import advance, control, partition, rollback
from producer.runs.partition import Page
from producer.schema import upgrade
from tests.driving import change, go_on, scalar, start, whole_run
from tests.short import short
from worker import batch

ROWS, BAD = 400, 4


@dataclass(frozen=True)
class Other:
    """A migration, its tables with rows, and statements that do something to row 7 or 8."""

    name: str
    tables: tuple[str, ...]
    # A target row of row 7: changed, taken away; and one more that nobody expects.
    forge: str
    take: str
    add: str
    # Row 100 is bad: fixed, and deleted.
    fix: str
    delete: str
    # What the application does while the run is on, to rows 7, 8, 9 and a new one.
    writes: tuple[str, ...]
    # The targets, by an oracle that knows the rule and nothing of the engine.
    wrong: str
    # What the tables hold besides the source rows.
    made: str
    # A good row that is quarantined by hand.
    good_key: str
    entity: str


BADGES = Other(
    "badges",
    (
        "CREATE TABLE members (code text PRIMARY KEY)",
        "CREATE TABLE badges (nr integer PRIMARY KEY, holder text, name text)",
        "CREATE TABLE awards (id varchar(40) PRIMARY KEY, holder text, title text)",
        "INSERT INTO members SELECT 'm' || n FROM generate_series(1, 50) AS n",
        "INSERT INTO badges SELECT n, 'm' || 1 + n % 50,"
        f" CASE WHEN n % 100 <> 0 THEN 'badge ' || n END FROM generate_series(1, {ROWS}) AS n",
    ),
    forge="UPDATE awards SET title = 'forged' WHERE title = 'BADGE 7'",
    take="DELETE FROM awards WHERE title = 'BADGE 7'",
    add="INSERT INTO awards VALUES ('a-0000000000000000200', 'm1', 'NOBODY')",
    fix="UPDATE badges SET name = 'fixed' WHERE nr = 100",
    delete="DELETE FROM badges WHERE nr = 100",
    writes=(
        "UPDATE badges SET name = 'other' WHERE nr = 7",
        "DELETE FROM badges WHERE nr = 8",
        "UPDATE badges SET name = NULL WHERE nr = 9",
        "UPDATE badges SET name = 'good now' WHERE nr = 200",
        f"INSERT INTO badges VALUES ({ROWS + 1}, 'm1', 'new'), ({ROWS + 2}, 'gone', 'x')",
        "DELETE FROM members WHERE code = 'm12'",
    ),
    wrong="""
SELECT count(*) FROM (
  SELECT upper(b.name) AS title, b.holder FROM badges b JOIN members m ON m.code = b.holder
  WHERE b.name IS NOT NULL) AS e
FULL JOIN awards a USING (title, holder) WHERE a.id IS NULL OR e.title IS NULL OR e.holder IS NULL
""",
    made="SELECT count(*) FROM awards",
    good_key="7",
    entity="badge",
)
LABELS = Other(
    "labels",
    (
        "CREATE TABLE documents (doc uuid PRIMARY KEY, no integer, labels jsonb)",
        "CREATE TABLE labels (id text PRIMARY KEY, doc uuid, label text)",
        "INSERT INTO documents SELECT md5(n::text)::uuid, n, CASE WHEN n % 100 = 0 THEN '{}'"
        " WHEN n % 5 = 0 THEN '[]' ELSE jsonb_build_array('A' || n, 'B: ' || n) END"
        f" FROM generate_series(1, {ROWS}) AS n",
    ),
    forge="UPDATE labels SET label = 'forged' WHERE label = 'a7'",
    take="DELETE FROM labels WHERE label = 'a7'",
    add="INSERT INTO labels SELECT 'l_' || replace(doc::text, '-', '') || '.9', doc, 'more'"
    " FROM documents WHERE no = 7",
    fix="""UPDATE documents SET labels = '["FIXED"]' WHERE no = 100""",
    delete="DELETE FROM documents WHERE no = 100",
    writes=(
        """UPDATE documents SET labels = '["A7", "NEW", "More"]' WHERE no = 7""",
        "DELETE FROM documents WHERE no = 8",
        "UPDATE documents SET labels = '{}' WHERE no = 9",
        """UPDATE documents SET labels = '["ONE"]' WHERE no = 11""",
        """UPDATE documents SET labels = '["GOOD"]' WHERE no = 200""",
        "INSERT INTO documents VALUES (md5('new')::uuid, 0, '[\"X\"]')",
    ),
    wrong="""
SELECT count(*) FROM (
  SELECT d.doc, lower(l) AS label FROM documents d,
    jsonb_array_elements_text(CASE jsonb_typeof(d.labels) WHEN 'array' THEN d.labels END) AS l) AS e
FULL JOIN labels t USING (doc, label) WHERE t.id IS NULL OR e.label IS NULL
""",
    made="SELECT count(*) FROM labels",
    good_key="8f14e45f-ceea-167a-5a36-dedd4bea2543",
    entity="document",
)
ACCOUNTS = Other(
    "accounts",
    (
        "CREATE TABLE accounts (number bigint PRIMARY KEY, seats integer)",
        "INSERT INTO accounts SELECT n, CASE WHEN n % 100 = 0 THEN -1 ELSE n % 20 END"
        f" FROM generate_series(1, {ROWS}) AS n",
    ),
    forge="UPDATE accounts SET plan = 'forged' WHERE number = 7",
    take="UPDATE accounts SET is_open = NULL WHERE number = 7",
    add="",
    fix="UPDATE accounts SET seats = 12 WHERE number = 100",
    delete="DELETE FROM accounts WHERE number = 100",
    writes=(
        "UPDATE accounts SET seats = 19 WHERE number = 7",
        "UPDATE accounts SET seats = -2 WHERE number = 9",
        "DELETE FROM accounts WHERE number = 8",
        "UPDATE accounts SET seats = 3 WHERE number = 200",
        f"INSERT INTO accounts VALUES ({ROWS + 1}, 15)",
    ),
    wrong="""
SELECT count(*) FROM accounts WHERE CASE WHEN seats < 0 THEN plan IS NOT NULL OR is_open IS NOT NULL
  ELSE is_open IS NOT TRUE OR plan IS DISTINCT FROM CASE WHEN seats > 10 THEN 'team'
    ELSE 'single' END END
""",
    made="SELECT count(*) FROM accounts WHERE plan IS NOT NULL OR is_open IS NOT NULL",
    good_key="7",
    entity="account",
)
KINDS = [BADGES, LABELS, ACCOUNTS]
EACH = pytest.mark.parametrize("other", KINDS, ids=lambda other: other.name)
# For what the engine does alike whatever a step is.
ONE = pytest.mark.parametrize("other", short(KINDS, BADGES), ids=lambda other: other.name)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def site(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Other], Settings]:
    def build(other: Other) -> Settings:
        monkeypatch.setenv("MIGRATION", f"tests.outside.{other.name}:MIGRATION")
        change(engine, *other.tables)
        return settings.model_copy(update={"batch_size": 50})

    return build


def is_found(engine: Engine, settings: Settings, run_id: str, kind: str) -> bool:
    control.check_again(engine, settings, run_id, "verification")
    ended = go_on(engine, settings, run_id)
    return ended.exit_status == 4 and any(kind in name for name in ended.differences)


def retried(engine: Engine, settings: Settings, run_id: str) -> RunReport:
    control.retry(engine, settings, run_id)
    return go_on(engine, settings, run_id)


def state_of(engine: Engine, key: str) -> Any:
    return scalar(engine, f"SELECT state FROM migration.quarantine WHERE legacy_key = '{key}'")


@EACH
def test_a_run_ends_right_and_again_and_a_rollback_leaves_nothing(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)
    first = whole_run(engine, settings)
    assert (first.exit_status, first.differences) == (3, {}), first.error
    assert scalar(engine, other.wrong) == 0
    assert scalar(engine, "SELECT count(*) FROM migration.quarantine WHERE state = 'open'") == BAD
    made = scalar(engine, other.made)
    again = whole_run(engine, settings)
    assert (again.exit_status, scalar(engine, other.made)) == (3, made), again.error
    for run_id in (again.run_id, first.run_id):
        assert run_id
        rollback.start(engine, settings, run_id, force=False)
        ended = go_on(engine, settings, run_id)
        assert (ended.state, ended.conflicts) == ("rolled_back", {}), ended.error
    assert scalar(engine, other.made) == 0
    assert scalar(engine, "SELECT count(*) FROM migration.created_rows") == 0
    assert scalar(engine, "SELECT count(*) FROM migration.before_images") == 0


@EACH
def test_what_is_changed_after_the_end_is_found_and_a_retry_leaves_it_to_the_new_application(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)
    run_id = whole_run(engine, settings).run_id
    assert run_id
    change(engine, other.forge)
    assert is_found(engine, settings, run_id, "wrong")
    assert retried(engine, settings, run_id).differences == {}
    assert scalar(engine, other.wrong) > 0


@EACH
def test_what_is_missing_or_too_much_is_found_and_a_retry_makes_what_is_missing(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)
    run_id = whole_run(engine, settings).run_id
    assert run_id
    change(engine, other.take)
    assert is_found(engine, settings, run_id, "missing" if other is not ACCOUNTS else "wrong")
    assert retried(engine, settings, run_id).differences == {}
    assert scalar(engine, other.wrong) == 0
    if other.add:
        change(engine, other.add)
        assert is_found(engine, settings, run_id, "extra")
        # Nobody's row: a retry neither takes it away nor forgets it.
        assert retried(engine, settings, run_id).exit_status == 4
    rows = differing.with_values(engine, settings, run_id, differing.read(engine, run_id))
    # A row that no run created has no source row: its own key is listed.
    assert all(row["target_key"] or row["detail"] == "not created by a run" for row in rows), rows


@ONE
def test_a_row_that_is_quarantined_wrongly_is_found(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)
    run_id = whole_run(engine, settings).run_id
    assert run_id
    change(
        engine,
        "INSERT INTO migration.quarantine (entity, legacy_key, run_id, reason, message)"
        f" VALUES ('{other.entity}', '{other.good_key}', '{run_id}', 'bad', '')",
    )
    assert is_found(engine, settings, run_id, "wrongly_quarantined")
    assert retried(engine, settings, run_id).differences == {}
    assert state_of(engine, other.good_key) == "resolved"


@ONE
def test_a_page_that_is_never_cut_is_found_and_a_retry_migrates_it(
    engine: Engine, site: Callable[[Other], Settings], other: Other,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = site(other)
    whole = partition.cut

    def cut(*arguments: Any, **options: Any) -> list[Page]:
        pages = whole(*arguments, **options)
        return [pages[0], *pages[2:]] if len(pages) >= 3 else pages

    with monkeypatch.context() as patched:
        patched.setattr(partition, "cut", cut)
        ended = whole_run(engine, settings)
    assert ended.exit_status == 4
    assert any("unaccounted" in name for name in ended.differences)
    assert ended.run_id
    assert retried(engine, settings, ended.run_id).differences == {}
    assert scalar(engine, other.wrong) == 0


@EACH
def test_a_fixed_row_is_migrated_by_a_retry_and_a_deleted_one_is_closed(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)
    run_id = whole_run(engine, settings).run_id
    assert run_id
    table = current.migration().sources[-1]
    key = scalar(
        engine,
        f"SELECT legacy_key FROM migration.quarantine q JOIN {table.table} t"
        f" ON t.{table.key}::text = q.legacy_key ORDER BY"
        f" t.{'no' if other is LABELS else table.key} LIMIT 1",
    )
    change(engine, other.fix)
    ended = retried(engine, settings, run_id)
    assert (ended.differences, state_of(engine, key)) == ({}, "resolved"), ended.error
    assert scalar(engine, other.wrong) == 0
    change(engine, other.delete)
    assert retried(engine, settings, run_id).differences == {}


@ONE
@pytest.mark.parametrize("stage", ["prepare", "step", "replay", "verification", "finish"])
def test_what_the_application_writes_meanwhile_is_taken_up(
    engine: Engine, site: Callable[[Other], Settings], other: Other, stage: str
) -> None:
    settings = site(other)
    name = current.migration().authored[0].name if stage == "step" else stage
    done: list[str] = []

    def write(of: str) -> None:
        if of == name and not done:
            done.append(of)
            change(engine, *other.writes)

    run_id = start(engine, settings)
    ended = go_on(engine, settings, run_id, before=write)
    assert done
    assert (ended.exit_status, ended.differences) == (3, {}), ended.error
    assert scalar(engine, other.wrong) == 0
    with engine.connect() as connection:
        left = connection.execute(text("SELECT * FROM migration.changes")).all()
    assert left == []


@EACH
def test_a_canary_takes_some_rows_and_a_full_run_the_rest(
    engine: Engine, site: Callable[[Other], Settings], other: Other
) -> None:
    settings = site(other)

    def write(of: str) -> None:
        if of == "replay" and scalar(engine, other.made) and not written:
            written.append(of)
            change(engine, *other.writes)

    written: list[str] = []
    upgrade.upgrade(engine, settings)
    canary, _ = advance.open_run(engine, settings, Choice(percent=40))
    ended = go_on(engine, settings, canary, before=write)
    assert (ended.exit_status in (0, 3), ended.differences) == (True, {}), ended.error
    assert written
    name = current.migration().plural(other.entity)
    assert 0 < ended.entities[name].total == ended.verification.rows_checked < ROWS
    full = whole_run(engine, settings)
    assert (full.exit_status, full.differences) == (3, {}), full.error
    assert scalar(engine, other.wrong) == 0
    for run_id in (full.run_id, canary):
        ended = go_on(engine, settings, rollback.start(engine, settings, run_id, force=False))
        assert (ended.state, ended.conflicts) == ("rolled_back", {}), ended.error
    assert scalar(engine, other.made) == 0


def test_a_table_that_does_not_belong_to_the_first_rules_out_a_canary(
    engine: Engine, site: Callable[[Other], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site(BADGES)
    upgrade.upgrade(engine, settings)
    members, badges = current.migration().sources
    stray = replace(badges, parent="", parent_column="")
    monkeypatch.setattr(current.migration(), "sources", (members, stray))
    with pytest.raises(Misconfigured, match="badges do not belong to members"):
        advance.open_run(engine, settings, Choice(percent=40))


def test_a_process_with_another_migration_does_not_touch_the_run(
    engine: Engine, site: Callable[[Other], Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = site(BADGES)
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    change(engine, *ACCOUNTS.tables)
    monkeypatch.setenv("MIGRATION", "tests.outside.accounts:MIGRATION")
    first = scalar(engine, "SELECT min(id) FROM migration.batches WHERE state = 'pending'")
    assert batch.run(engine, settings, run_id, first, "stranger") == {"outcome": "failed"}
    assert scalar(engine, f"SELECT state FROM migration.batches WHERE id = {first}") == "pending"
    with pytest.raises(Misconfigured, match="belongs to the tables public"):
        start(engine, settings)
    monkeypatch.setenv("MIGRATION", "tests.outside.badges:MIGRATION")
    assert go_on(engine, settings, run_id).exit_status == 3
