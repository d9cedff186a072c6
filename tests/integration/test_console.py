"""The console shows nothing and does nothing without a login, and is quick on a large ledger."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from models.postgres import database as databases
from models.reports.run import RunReport
from models.settings import Settings
from producer.console import app, login, pages
from producer.console.login import Passwords
from producer.reports import lists, status
from producer.runs import advance
from producer.schema import upgrade as schema_step
from tests import large_ledger
from tests.driving import change, go_on, scalar, spent, start

USERS = 60
PASSWORD, READS = "correct horse", "battery staple"
# Of an answer, whatever the size of the run.
MOST_STATEMENTS, MOST_ROWS = 40, 200
LOOPBACK = ["127.0.0.1", "localhost"]


@pytest.fixture
def client(engine: Engine, settings: Settings) -> FlaskClient:
    return app.create(engine, settings, Passwords(PASSWORD, READS), hosts=LOOPBACK).test_client()


@pytest.fixture
def ada(client: FlaskClient) -> FlaskClient:
    """Logged in, by that name."""
    assert log_in(client).status_code == 303
    return client


def token(client: FlaskClient, path: str = "/login") -> str:
    return re.findall(r'name="csrf_token" value="([^"]*)"', client.get(path).text)[0]


def log_in(client: FlaskClient, password: str = PASSWORD, **more: str) -> TestResponse:
    form = {"name": "Ada", "password": password, "csrf_token": token(client)}
    return client.post("/login", data=form | more)


def press(client: FlaskClient, run_id: str, action: str, **form: str) -> TestResponse:
    """Press a button of the page of a run; the page that comes then."""
    data = {"csrf_token": token(client, f"/runs/{run_id}"), **form}
    return client.post(f"/runs/{run_id}/{action}", data=data, follow_redirects=True)


def buttons(page: str) -> list[str]:
    """What the buttons of a page do, but for the doctor's, which is always there."""
    return [name for name in re.findall(r'name="do" value="([\w-]+)"', page) if name != "doctor"]


def state(engine: Engine) -> str:
    return str(scalar(engine, "SELECT state FROM migration.runs"))


def test_without_a_login_there_is_nothing_to_see_and_nothing_to_do(
    client: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    for path in ("/", f"/runs/{run_id}", "/runs/nothing"):
        answer = client.get(path)
        assert (answer.status_code, answer.location) == (302, "/login"), path
        assert run_id not in answer.text.replace(path, "")
    for action in pages.ACTIONS:
        answer = client.post(f"/runs/{run_id}/{action}", data={"csrf_token": token(client)})
        assert (answer.status_code, answer.location) == (302, "/login"), action
    assert state(engine) == "preparing"


def test_a_wrong_password_is_refused_and_after_five_of_them_the_right_one_too(
    client: FlaskClient,
) -> None:
    for _ in range(login.ATTEMPTS_A_MINUTE):
        answer = log_in(client, "wrong horse")
        assert answer.status_code == 403
        assert "not the password" in answer.text
    answer = log_in(client)
    assert (answer.status_code, "Wait a minute" in answer.text) == (429, True)
    assert client.get("/").location == "/login"


def test_a_form_of_another_site_does_nothing(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    for data in ({}, {"csrf_token": "made up"}):
        assert ada.post(f"/runs/{run_id}/cancel", data=data).status_code == 400
    assert ada.get(f"/runs/{run_id}/cancel").status_code == 405
    assert state(engine) == "preparing"
    assert ada.post("/logout").status_code == 400


def test_every_answer_has_its_headers_and_no_page_has_script_of_its_own(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    paths = (
        "/",
        "/login",
        f"/runs/{run_id}",
        f"/runs/{run_id}/quarantine",
        "/no",
        "/assets/live.js",
    )
    for path in paths:
        answer = ada.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert not re.search(r"<script(?! src=)|<style| style=| on\w+=", answer.text), path


@pytest.mark.parametrize(("hosts", "is_secure"), [(LOOPBACK, False), (None, True)])
def test_the_cookie_is_for_this_site_alone_and_for_tls_beyond_loopback(
    engine: Engine, settings: Settings, hosts: list[str] | None, is_secure: bool
) -> None:
    client = app.create(engine, settings, Passwords(PASSWORD, READS), hosts=hosts).test_client()
    cookie = client.get("/login", base_url="https://localhost").headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ("Secure" in cookie) == is_secure


def test_a_page_that_loads_itself_again_does_not_prolong_the_session(ada: FlaskClient) -> None:
    assert "Set-Cookie" in ada.get("/").headers, "the token of its forms"
    assert "Set-Cookie" not in ada.get("/").headers


def test_a_name_that_leads_here_from_elsewhere_is_refused(client: FlaskClient) -> None:
    assert client.get("/login", headers={"Host": "evil.example"}).status_code == 400


def test_pause_resume_and_cancel_are_noted_with_the_name_of_who_pressed_them(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    for action, then in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        page = press(ada, run_id, action).text
        assert state(engine) == then
        if then == "paused":
            assert "Paused by Ada (console) from console/127.0.0.1 at " in page
            assert "Next: Resume, or Cancel." in page
    noted = [row for row in status.actions(engine) if row["actor"] == "Ada (console)"]
    assert [row["action"] for row in noted] == ["cancel", "resume", "pause"]
    assert {row["origin"] for row in noted} == {"console/127.0.0.1"}
    audit_of_others = [row for row in status.actions(engine) if row["action"] == "enqueue-all"]
    assert audit_of_others[0]["actor"] != "Ada (console)"


def test_what_a_state_does_not_allow_has_no_button_and_changes_nothing(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    page = ada.get(f"/runs/{run_id}").text
    assert buttons(page) == ["pause", "cancel"]
    answer = press(ada, run_id, "retry")
    assert f"Run {run_id} is preparing" in answer.text
    assert state(engine) == "preparing"


def test_a_finished_run_shows_its_quarantined_rows_and_offers_a_retry(
    ada: FlaskClient, engine: Engine, finished: RunReport
) -> None:
    page = ada.get(f"/runs/{finished.run_id}").text
    assert f'href="/runs/{finished.run_id}/quarantine?reason=owner_quarantined"' in page
    assert buttons(page) == ["retry", "verification", "reconciliation"]
    assert f'href="/runs/{finished.run_id}/rollback"' in page
    assert state(engine) == "completed_with_quarantine"
    press(ada, str(finished.run_id), "retry")
    assert state(engine) == "running"


def test_a_reader_sees_everything_and_changes_nothing(
    client: FlaskClient, engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    assert log_in(client, READS).status_code == 303
    for path in ("/", f"/runs/{run_id}", f"/runs/{run_id}/quarantine", f"/runs/{run_id}/report"):
        answer = client.get(path)
        assert answer.status_code == 200
        # The only form that posts logs out.
        posted = re.findall(r'method="post" action="([^"]+)"', answer.text)
        assert set(posted) <= {"/logout"}, path
    before = scalar(engine, "SELECT count(*) FROM migration.audit")
    for rule in app.create(engine, settings, Passwords(PASSWORD), hosts=None).url_map.iter_rules():
        if rule.endpoint.startswith("actions."):
            path = re.sub("<[^>]*run_id>", run_id, rule.rule)
            path = re.sub("<[^>]*batch_id>", "1", re.sub("<any.*?>", "retry", path))
            path = path.replace("<name>", "credits")
            if "POST" in (rule.methods or ()):
                answer = client.post(path, data={"csrf_token": token(client, "/")})
            else:
                answer = client.get(path)
            assert (answer.status_code, "as a reader" in answer.text) == (403, True), path
    assert state(engine) == "completed_with_quarantine"
    assert scalar(engine, "SELECT count(*) FROM migration.audit") == before


def test_without_a_readers_password_an_empty_one_opens_nothing(
    engine: Engine, settings: Settings
) -> None:
    client = app.create(engine, settings, Passwords(PASSWORD), hosts=LOOPBACK).test_client()
    for word in ("", READS):
        assert log_in(client, word).status_code == 403


def keys(page: str) -> list[str]:
    """The rows of a page of the quarantine, in their order."""
    return re.findall(r'name="key" value="([^"]+)"', page)


def walk(client: FlaskClient, path: str) -> list[str]:
    """The rows of all pages of a list, by its links."""
    found = []
    while path:
        page = client.get(path).text
        found += keys(page)
        onward = re.search(r'href="([^"]+)">Next page', page)
        path = html.unescape(onward[1]) if onward else ""
    return found


def test_each_quarantined_row_is_on_one_page_in_every_order_and_in_the_csv(
    ada: FlaskClient, engine: Engine, finished: RunReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"/runs/{finished.run_id}/quarantine"
    wanted = {f"{row['entity']}:{row['key']}": row for row in status.quarantined(engine, None)}
    assert len(wanted) > 10
    monkeypatch.setattr(lists, "PAGE_ROWS", 3)
    monkeypatch.setattr(lists, "CSV_PAGE_ROWS", 4)
    for name in ("", "entity", "key", "reason", "attempts", "state"):
        up, down = (walk(ada, f"{run}?sort={sign}{name}") for sign in ("", "-"))
        assert sorted(up) == sorted(down) == sorted(wanted), name
        if name:
            assert up == down[::-1], name
            assert [wanted[key][name] for key in up] == sorted(row[name] for row in wanted.values())
    some = next(iter(wanted))
    assert walk(ada, f"{run}?q={some.partition(':')[2][3:]}") == [some]
    few = [key for key, row in wanted.items() if row["reason"] == "owner_quarantined"]
    assert sorted(walk(ada, f"{run}?reason=owner_quarantined")) == sorted(few)
    for path, count in ((f"{run}.csv", len(wanted)), (f"{run}.csv?q={some[-6:]}%25", 0)):
        rows = list(csv.DictReader(io.StringIO(ada.get(path).text)))
        assert len(rows) == len({(row["entity"], row["key"]) for row in rows}) == count
    change(engine, "UPDATE migration.quarantine SET message = '=1+1'")
    found = csv.DictReader(io.StringIO(ada.get(f"{run}.csv").text))
    assert {row["message"] for row in found} == {"'=1+1"}
    # What is no place in the list, or no order, is the first page.
    for nonsense in (
        "after=x",
        "after=" + "[" * 20_000,
        'after=["\\ud800","a"]',
        'after=["\\u0000","a"]',
        'after=["a"]',
        "after=[1,2]",
        "sort=password",
        "q=%00",
        "reason=%00",
    ):
        assert len(keys(ada.get(f"{run}?{nonsense}").text)) == 3, nonsense


def test_rows_are_accepted_and_opened_again_one_by_one_and_by_their_reason(
    ada: FlaskClient, engine: Engine, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    run = f"/runs/{run_id}/quarantine"
    standing = "SELECT count(*) FROM migration.quarantine WHERE state = '{}'"
    everything = scalar(engine, standing.format("open"))
    (some, *_) = [key for key in keys(ada.get(run).text) if key.startswith("project:")]
    for action, count in (("accept", 1), ("unaccept", 0)):
        page = press(ada, run_id, "quarantine", do=action, key=some).text
        assert "1 row " in page
        assert scalar(engine, standing.format("accepted")) == count
    reason = scalar(engine, "SELECT reason FROM migration.quarantine WHERE entity = 'user' LIMIT 1")
    press(ada, run_id, "quarantine", do="accept", reason=reason)
    of_reason = f"SELECT count(*) FROM migration.quarantine WHERE reason = '{reason}' AND state = "
    assert scalar(engine, f"{of_reason} 'open'") == 0
    # What hangs on these users is accepted with them.
    accepted = scalar(engine, standing.format("accepted"))
    assert accepted > scalar(engine, f"{of_reason} 'accepted'") > 0
    press(ada, run_id, "quarantine", do="unaccept", reason=reason)
    assert scalar(engine, standing.format("open")) == everything
    assert press(ada, run_id, "quarantine", do="accept", key="a\0").status_code == 404
    assert ada.get("/runs/a%00").status_code == 404
    assert [row["actor"] for row in status.actions(engine)[:4]] == ["Ada (console)"] * 4


@pytest.mark.usefixtures("bare")
def test_a_run_is_started_after_a_check_and_the_list_says_by_whom(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    assert buttons(ada.get("/start").text) == ["check"]
    page = ada.post("/check", data={"csrf_token": token(ada, "/start")}).text
    assert buttons(page) == ["enqueue-all", "check"]
    assert scalar(engine, "SELECT to_regclass('migration.runs')") is None
    page = ada.post("/start", data={"csrf_token": token(ada, "/start")}, follow_redirects=True).text
    assert "Started." in page and state(engine) == "running"
    row = re.search(r'<tr id="run-.*?</tr>', ada.get("/").text, re.DOTALL)
    assert row and "Ada (console)" in row[0]
    # Once more: the same run.
    ada.post("/start", data={"csrf_token": token(ada, "/start")})
    assert scalar(engine, "SELECT count(*) FROM migration.runs") == 1


@pytest.mark.usefixtures("bare")
def test_a_check_that_fails_offers_no_start(ada: FlaskClient, engine: Engine) -> None:
    change(engine, "DROP TABLE projects")
    page = ada.post("/check", data={"csrf_token": token(ada, "/start")}).text
    assert buttons(page) == ["check"] and "Fix what they name" in page


def fail_waiting(engine: Engine, error: str) -> None:
    """Let the batches of users that wait fail: their claim finds nothing to do."""
    change(
        engine,
        "UPDATE migration.batches SET state = 'failed', finished_at = now(),"
        f" error = {error} WHERE state = 'pending' AND stage = 'users'",
    )


def test_a_run_that_its_error_budget_paused_says_what_to_fix_and_continues_with_retry(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    small = settings.model_copy(update={"batch_size": 20, "error_budget": 2})
    run_id = start(engine, small)
    found = go_on(engine, small, run_id, before=lambda _: fail_waiting(engine, "'broken'"))
    assert found.state == "paused" and found.time_left is None
    page = ada.get(f"/runs/{run_id}").text
    assert "Paused by error budget at " in page and "failed with the same error" in page
    assert buttons(page) == ["retry", "resume", "cancel"]
    assert "batches/" not in page
    press(ada, run_id, "retry")
    assert state(engine) == "running"


def test_one_failed_batch_is_tried_again_and_the_others_stay_failed(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    small = settings.model_copy(update={"batch_size": 20})
    run_id = start(engine, small)
    failed = "SELECT array_agg(id ORDER BY id) FROM migration.batches WHERE state = 'failed'"
    found = go_on(engine, small, run_id, before=lambda _: fail_waiting(engine, "'broken ' || id"))
    assert found.state == "failed"
    first, *others = scalar(engine, failed)
    assert others
    assert f"batches/{first}/retry" in ada.get(f"/runs/{run_id}").text
    press(ada, run_id, f"batches/{first}/retry")
    assert state(engine) == "running"
    assert go_on(engine, small, run_id).state == "failed"
    assert scalar(engine, failed) == others
    assert (
        f"Batch {first} of run {run_id} is not failed"
        in press(ada, run_id, f"batches/{first}/retry").text
    )
    assert state(engine) == "failed"
    press(ada, run_id, "retry")
    found = go_on(engine, small, run_id)
    assert found.state == "completed_with_quarantine" and not found.differences


def test_a_balance_that_differs_is_repaired_and_the_run_brought_in_line(
    ada: FlaskClient, engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    change(engine, "UPDATE users SET credits_balance = credits_balance + 50"
           " WHERE id = (SELECT min(id) FROM users WHERE credits_balance > 0)")  # fmt: skip
    press(ada, run_id, "reconciliation")
    assert go_on(engine, settings, run_id).state == "failed"
    assert 'href="/repairs/credits"' in ada.get(f"/runs/{run_id}/differences").text

    def repair(do: str) -> str:
        data = {"csrf_token": token(ada, "/repairs/credits"), "do": do}
        return ada.post("/repairs/credits", data=data).text

    for _ in range(2):
        assert "<strong>1</strong> change would be made" in repair("look")
    assert "<strong>1</strong> change made" in repair("repair")
    assert "<strong>0</strong> changes would be made" in repair("look")
    (noted,) = [row for row in status.actions(engine) if row["action"] == "repair credits"]
    assert noted["actor"] == "Ada (console)"
    press(ada, run_id, "retry")
    found = go_on(engine, settings, run_id)
    assert (found.state, found.differences) == ("completed_with_quarantine", {})
    assert "has no repair nothing" in ada.post(
        "/repairs/nothing", data={"csrf_token": token(ada, "/")}, follow_redirects=True
    ).text  # fmt: skip


def test_a_rollback_wants_the_id_of_the_run(
    ada: FlaskClient, engine: Engine, settings: Settings, finished: RunReport
) -> None:
    run_id = str(finished.run_id)
    page = ada.get(f"/runs/{run_id}/rollback").text
    assert databases.name_of(engine) in page
    for typed in ("", run_id[:-1], "yes"):
        answer = press(ada, run_id, "rollback", typed=typed).text
        assert "Nothing was changed" in answer
    data = {"csrf_token": token(ada, "/"), "typed": run_id[:-1]}
    ada.post(f"/runs/{run_id[:-1]}/rollback", data=data)
    assert state(engine) == "completed_with_quarantine"
    press(ada, run_id, "rollback", typed=run_id)
    assert state(engine) == "rolling_back"
    assert go_on(engine, settings, run_id).state == "rolled_back"
    page = ada.get(f"/runs/{run_id}").text
    assert buttons(page) == [] and f"/runs/{run_id}/rollback" not in page


def test_what_the_ledger_holds_is_text_and_never_html(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    advance.advance(engine, settings, run_id)
    change(
        engine,
        "UPDATE migration.batches SET state = 'failed', finished_at = now(),"
        " error = '<img src=x onerror=alert(1)>'",
    )
    page = ada.get(f"/runs/{run_id}").text
    assert "&lt;img src=x" in page and "<img" not in page


@pytest.mark.usefixtures("bare")
def test_before_the_first_run_it_says_how_to_start_one(ada: FlaskClient, engine: Engine) -> None:
    page = ada.get("/").text
    assert "No run yet" in page
    # Which database it is about is in the header.
    assert databases.name_of(engine) in page
    assert ada.get("/runs/2026").status_code == 404


@pytest.mark.parametrize("kind", ["running", "completed_with_quarantine", "failed"])
def test_with_a_million_users_in_ten_thousand_batches_a_page_asks_for_little(
    engine: Engine, settings: Settings, ada: FlaskClient, kind: str
) -> None:
    schema_step.upgrade(engine, settings)
    with engine.begin() as connection:
        large_ledger.fill(connection, state=kind)
    count = scalar(engine, "SELECT count(*) FROM migration.batches")
    assert count >= large_ledger.BATCHES
    run = f"/runs/{large_ledger.RUN}"
    for path in ("/", run, f"{run}/quarantine", f"{run}/differences"):
        with spent(engine) as found:
            assert ada.get(path).status_code == 200
        assert found.statements <= MOST_STATEMENTS, path
        assert found.rows <= MOST_ROWS, path
