"""The console shows nothing and does nothing without a login, and is quick on a large ledger."""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from models.postgres import database as databases
from models.settings import Settings
from producer.console import app
from producer.reports import status
from producer.runs import advance
from producer.schema import upgrade as schema_step
from tests import large_ledger
from tests.driving import change, scalar, spent, start, whole_run

USERS = 60
PASSWORD = "correct horse"
# Of an answer, whatever the size of the run.
MOST_STATEMENTS, MOST_ROWS = 40, 200
LOOPBACK = ["127.0.0.1", "localhost"]


@pytest.fixture
def client(engine: Engine, settings: Settings) -> FlaskClient:
    return app.create(engine, settings, PASSWORD, hosts=LOOPBACK).test_client()


@pytest.fixture
def ada(client: FlaskClient) -> FlaskClient:
    """Logged in, by that name."""
    assert log_in(client).status_code == 303
    return client


def token(client: FlaskClient, path: str = "/login") -> str:
    (found,) = set(re.findall(r'name="csrf_token" value="([^"]*)"', client.get(path).text))
    return str(found)


def log_in(client: FlaskClient, password: str = PASSWORD, **more: str) -> TestResponse:
    form = {"name": "Ada", "password": password, "csrf_token": token(client)}
    return client.post("/login", data=form | more)


def press(client: FlaskClient, run_id: str, action: str) -> TestResponse:
    """Press a button of the page of a run; the page that comes then."""
    data = {"csrf_token": token(client, f"/runs/{run_id}")}
    return client.post(f"/runs/{run_id}/{action}", data=data, follow_redirects=True)


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
    assert client.get(f"/runs/{run_id}/progress").status_code == 401
    for action in app.ACTIONS:
        answer = client.post(f"/runs/{run_id}/{action}", data={"csrf_token": token(client)})
        assert (answer.status_code, answer.location) == (302, "/login"), action
    assert state(engine) == "preparing"


def test_a_wrong_password_is_refused_and_after_five_of_them_the_right_one_too(
    client: FlaskClient,
) -> None:
    for _ in range(app.ATTEMPTS_A_MINUTE):
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
    paths = ("/", "/login", f"/runs/{run_id}", f"/runs/{run_id}/progress", "/no", "/assets/live.js")
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
    client = app.create(engine, settings, PASSWORD, hosts=hosts).test_client()
    cookie = client.get("/login", base_url="https://localhost").headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert ("Secure" in cookie) == is_secure


def test_a_name_that_leads_here_from_elsewhere_is_refused(client: FlaskClient) -> None:
    assert client.get("/login", headers={"Host": "evil.example"}).status_code == 400


def test_pause_resume_and_cancel_are_noted_with_the_name_of_who_pressed_them(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    run_id = start(engine, settings)
    for action, then in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        page = press(ada, run_id, action)
        assert f"Done: {action}." in page.text
        assert state(engine) == then
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
    assert re.findall(r'name="do" value="(\w+)"', page) == ["pause", "cancel"]
    answer = press(ada, run_id, "retry")
    assert f"Run {run_id} is preparing" in answer.text
    assert state(engine) == "preparing"


def test_a_finished_run_shows_its_quarantined_rows_and_offers_a_retry(
    ada: FlaskClient, engine: Engine, settings: Settings
) -> None:
    found = whole_run(engine, settings)
    page = ada.get(f"/runs/{found.run_id}").text
    key = scalar(engine, "SELECT min(legacy_key) FROM migration.quarantine WHERE entity = 'user'")
    assert f"user:{key}" in page
    assert re.findall(r'name="do" value="(\w+)"', page) == ["retry"]
    assert "live.js" not in page
    assert state(engine) == "completed_with_quarantine"
    press(ada, str(found.run_id), "retry")
    assert state(engine) == "running"


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
    for path in ("/", run, f"{run}/progress"):
        with spent(engine) as found:
            assert ada.get(path).status_code == 200
        assert found.statements <= MOST_STATEMENTS, path
        assert found.rows <= MOST_ROWS, path
