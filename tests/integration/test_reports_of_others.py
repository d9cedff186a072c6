"""Every report names what the migration at hand migrates, and nothing of the dashboard."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from sqlalchemy import Engine

from models.engine import current
from models.engine.migration import Migration
from models.engine.step import Context, Scope, Step
from models.errors import NotAllowed
from models.postgres import database as databases
from models.settings import Settings
from producer import repair
from producer.checks import performance, plan
from producer.console import app
from producer.console.login import Passwords
from producer.reports import history, html, live_view, metrics, status, terminal
from producer.runs import control, rollback
from tests.driving import change, go_on, scalar, start, whole_run
from tests.integration.test_other_migrations import ACCOUNTS, BAD, BADGES, EACH, ROWS, Other
from tests.outside import accounts, badges

STAGES = ["prepare", "badges", "replay", "verification", "finish"]
# Of the dashboard; the queues of a process are settled when it starts, here by the dashboard.
WORDS = re.compile(r"(?<!migration\.)\b(user|project|subscription|credit|balance)s?(?=\b|_)")


class Titles(Step):
    """A reconciliation: no holder has two awards of one title."""

    name = "titles"
    stage = "reconciliation"
    queue = "migration.titles"
    source = badges.BADGES
    entity = "badge"

    def differences(self, context: Context, scope: Scope) -> list[str]:
        table = context.sources["badge"]
        return [
            context.render(
                "SELECT 'extra', 'badge', t.nr::text, 'awards', NULL FROM {badges} t WHERE {scope}"
                " AND (SELECT count(*) FROM {awards} a"
                "      WHERE a.holder = t.holder AND a.title = upper(t.name)) > 1",
                scope=scope.of(table),
            )
        ]

    def account(self, context: Context, scope: Scope) -> str:
        table = context.sources["badge"]
        return context.render(
            "SELECT count(*) AS badges_checked FROM {badges} t WHERE {scope}",
            scope=scope.of(table),
        )


class Priced(Migration):
    """Badges with all that a migration may tell of itself."""

    queries: ClassVar = {
        "awards of a holder": "SELECT a.title FROM {awards} a WHERE a.holder = :key"
    }


PRICED = Priced("priced", [badges.Badges(), Titles()], sources=[badges.MEMBERS, badges.BADGES])


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = databases.create(database)
    yield engine
    engine.dispose()


@pytest.fixture
def site(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Settings]:
    def build(other: Other, name: str = "") -> Settings:
        monkeypatch.setenv("MIGRATION", name or f"tests.outside.{other.name}:MIGRATION")
        change(engine, *other.tables)
        return settings.model_copy(update={"batch_size": 50})

    return build


def said(write: Callable[..., None], *what: Any) -> str:
    out = io.StringIO()
    write(Console(file=out, width=200, no_color=True), *what)
    return out.getvalue()


def view(engine: Engine, run_id: str) -> str:
    """What `--watch` shows now."""
    return said(lambda console, found: console.print(found),
                live_view.screen(status.look(engine, run_id)))  # fmt: skip


def pages(engine: Engine, settings: Settings, run_id: str) -> str:
    """What the console shows of a run."""
    browser = app.create(engine, settings, Passwords("secret"), hosts=["localhost"]).test_client()
    (token,) = set(re.findall(r'name="csrf_token" value="([^"]*)"', browser.get("/login").text))
    form = {"name": "Ada", "password": "secret", "csrf_token": token}
    assert browser.post("/login", data=form).status_code == 303
    paths = ("", "/quarantine", "/differences", "/rollback", "/report")
    return "".join(browser.get(f"/runs/{run_id}{path}").text for path in paths)


def scraped(engine: Engine) -> tuple[str, dict[tuple[str, ...], float]]:
    """What Prometheus reads, as it is and by name and labels."""
    lines = generate_latest(metrics.registry(engine)).decode()
    return lines, {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(lines)
        for sample in family.samples
    }


@EACH
def test_no_report_has_a_word_of_the_dashboard(
    engine: Engine, site: Callable[..., Settings], other: Other
) -> None:
    settings = site(other)
    reports = [said(terminal.plan, plan.make(engine, settings, None, 2))]
    run_id = start(engine, settings)
    ended = go_on(engine, settings, run_id, before=lambda _: reports.append(view(engine, run_id)))
    assert ended.exit_status == 3, ended.error
    found = status.read(engine, run_id)
    reports += [
        json.dumps(found.model_dump(mode="json")),
        said(terminal.stages, found),
        said(terminal.summary, found),
        said(terminal.speeds, performance.measure(engine, settings)),
        html.render(history.read(engine, settings, run_id)),
        pages(engine, settings, run_id),
        scraped(engine)[0],
    ]
    for report in reports:
        assert not WORDS.search(report), report


def test_json_metrics_and_pages_say_what_was_migrated(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(BADGES)
    found = whole_run(engine, settings)
    dumped = found.model_dump(mode="json")
    standing = {"total": ROWS, "migrated": ROWS - BAD, "quarantined": BAD}
    assert (dumped["badges"], dumped["rows"]) == (standing, {"awards": ROWS - BAD})
    assert [stage["name"] for stage in dumped["stages"]] == STAGES
    assert dumped["reconciliation"] == {"state": "none", "badges_checked": 0, "discrepancies": 0}
    assert dumped["badges_per_second"] > 0
    _, figures = scraped(engine)
    assert figures["migration_legacy_rows", "badges", "migrated"] == ROWS - BAD
    assert figures["migration_rows_written", "awards"] == ROWS - BAD
    sentence = html.sentence(found)
    assert f"{ROWS - BAD} of {ROWS} badges are migrated" in sentence
    assert "every row was compared, and nothing differs" in sentence
    assert found.run_id and sentence in pages(engine, settings, found.run_id)
    planned = plan.make(engine, settings, None, 2)
    assert [stage.name for stage in planned.stages] == STAGES


def test_a_run_is_estimated_and_done_by_its_own_stages(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(BADGES)
    run_id = start(engine, settings)
    shares: list[float] = []
    left: list[float] = []

    def look(_: str) -> None:
        found = status.look(engine, run_id)
        shares.append(found.progress)
        if found.time_left:
            left.append(found.time_left.at_most)

    ended = go_on(engine, settings, run_id, before=look)
    assert shares == sorted(shares) and shares[-1] > 0 and ended.progress == 1
    assert left and all(left)


def test_a_reconciliation_names_what_it_counts_and_a_migration_names_its_queries(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(BADGES, f"{__name__}:PRICED")
    found = whole_run(engine, settings)
    assert found.exit_status == 3, found.error
    reconciled = found.model_dump()["reconciliation"]
    assert reconciled == {"state": "done", "badges_checked": ROWS, "discrepancies": 0}
    assert f"{ROWS} badges were reconciled, and nothing differs" in html.sentence(found)
    assert f"Reconciliation done: {ROWS} badges, 0 discrepancies" in said(terminal.summary, found)
    (speed,) = performance.measure(engine, settings)
    assert (speed.name, speed.verdict) == ("awards of a holder", "ok")
    assert found.run_id
    change(engine, "INSERT INTO awards SELECT 'b', holder, title FROM awards LIMIT 1")
    control.check_again(engine, settings, found.run_id, "reconciliation")
    again = go_on(engine, settings, found.run_id)
    assert (again.exit_status, again.reconciliation.discrepancies) == (4, 1)
    assert "with 1 discrepancy" in html.sentence(again)


def test_the_count_of_a_reconciliation_is_named_after_the_rows_that_it_checks() -> None:
    both = [accounts.Accounts(), badges.Badges(), Titles()]
    found = Migration("both", both, sources=[badges.MEMBERS, badges.BADGES])
    assert found.counted == ["badge", "account"]
    found = Migration("both", [accounts.Accounts(), Titles()])
    assert (found.first, found.reconciled, found.checked) == ("account", "badge", "badges_checked")


def test_columns_that_are_filled_in_place_are_no_rows_that_were_written(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(ACCOUNTS)
    found = whole_run(engine, settings)
    assert found.rows == {}
    assert "Written" not in said(terminal.summary, found)
    assert "This run wrote" not in html.render(history.read(engine, settings, found.run_id))


def test_what_the_migration_does_not_have_is_refused_by_its_name(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(BADGES)
    found = whole_run(engine, settings)
    with pytest.raises(NotAllowed, match="badges has no reconciliation"):
        control.check_again(engine, settings, found.run_id, "reconciliation")
    with pytest.raises(NotAllowed, match="badges has no repair credits"):
        repair.run(engine, settings, "credits", key=None, dry_run=True, force=False)
    assert scalar(engine, "SELECT state FROM migration.runs") == found.state
    assert not current.migration().repairs


def test_a_rollback_says_how_many_rows_each_run_changed(
    engine: Engine, site: Callable[..., Settings]
) -> None:
    settings = site(BADGES)
    found = whole_run(engine, settings)
    (chosen,) = rollback.targets(engine, None, force=False)
    assert (chosen.id, chosen.rows) == (found.run_id, ROWS - BAD)
    rollback.start(engine, settings, chosen.id, force=False)
    undone = go_on(engine, settings, chosen.id)
    assert undone.entities["badges"].migrated == 0
    assert undone.model_dump()["badges"] == {"total": ROWS, "migrated": 0, "quarantined": 0}
