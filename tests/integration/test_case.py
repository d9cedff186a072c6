"""The archive for helpers tells how a run stands, and holds no secret and nothing of any row."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from models.errors import NotAllowed
from models.ledger import audit
from models.postgres import database as databases
from models.postgres.database import transaction
from models.settings import SECRETS, Settings
from producer.case import make
from producer.runs import acceptance, control
from tests.driving import change, go_on, scalar, start

USERS, BATCH_SIZE = 40, 10
SECRET = "planted-Secret-9"


@pytest.fixture
def secret(settings: Settings) -> Settings:
    """Each setting that may hold a secret holds one."""
    values: dict[str, Any] = {
        name: SecretStr(SECRET) if "SecretStr" in str(field.annotation) else f"http://{SECRET}"
        for name, field in Settings.model_fields.items()
        if field.alias in SECRETS
    }
    values |= {"api_urls": (f"http://me:{SECRET}@127.0.0.1:1",), "notify_command": f"say {SECRET}"}
    return settings.model_copy(update=values)


def read(file: Path) -> dict[str, Any]:
    with tarfile.open(file) as archive:
        return {
            member.name.partition("/")[2]: json.loads(archive.extractfile(member).read())  # type: ignore[union-attr]
            for member in archive.getmembers()
        }


def values_of_rows(engine: Engine) -> set[str]:
    """Keys and texts of all rows: whatever is long enough to be told from a count."""
    columns = """
SELECT format('SELECT DISTINCT %I::text FROM %s WHERE length(%I::text) > 8', a.attname,
  c.oid::regclass, a.attname) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0
  AND a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'uuid'::regtype, 'jsonb'::regtype)"""
    found: set[str] = set()
    with engine.connect() as connection:
        for query in connection.scalars(text(columns)).all():
            found |= {
                str(v) for v in connection.exec_driver_sql(query.replace("%", "%%")).scalars()
            }
    return found - {"migration", "completed", "education"}


def test_a_case_tells_how_a_run_stands_without_secrets_and_rows(
    engine: Engine, secret: Settings, tmp_path: Path
) -> None:
    with audit.acting("Ada Lovelace", "her-laptop/1"):
        run_id = start(engine, secret)
        control.pause(engine, run_id)
        assert make.make(engine, secret, tmp_path / "paused.tar.gz") == {}
        control.resume(engine, secret, run_id)
    go_on(engine, secret, run_id)
    keys = "SELECT legacy_key FROM migration.quarantine WHERE reason = 'email_blank'"
    acceptance.accept(engine, secret, run_id, [scalar(engine, keys)])
    change(engine, "DELETE FROM tool_usage_logs", "UPDATE users SET credits_balance = 7")
    control.check_again(engine, secret, run_id, "verification")
    go_on(engine, secret, run_id)
    paused = json.dumps(read(tmp_path / "paused.tar.gz"))
    assert '"paused_by": "an operator"' in paused
    assert "Lovelace" not in paused and "her-laptop" not in paused
    file = tmp_path / "night.tar.gz"
    assert make.make(engine, secret, file) == {}
    found = read(file)
    assert found["status.json"]["state"] == "failed" and found["check.json"]
    assert found["settings.json"]["MIGRATION_BATCH_SIZE"] == str(BATCH_SIZE)
    assert len(found["ledger/differences.json"]) > 50
    assert {row["action"] for row in found["ledger/audit.json"]} >= {"pause", "accept"}
    # One key is one hash, wherever it stands.
    quarantined = {row["legacy_key"] for row in found["ledger/quarantine.json"]}
    assert len(quarantined) == scalar(
        engine, "SELECT count(DISTINCT legacy_key) FROM migration.quarantine"
    )
    everything = json.dumps(found, ensure_ascii=False)
    for leak in (SECRET, "Ada", "her-laptop"):
        assert leak not in everything
    of_rows = values_of_rows(engine) - {run_id}
    assert len(of_rows) > 100 and [value for value in of_rows if value in everything] == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(NotAllowed, match="already"):
        make.make(engine, secret, file)


def test_of_a_log_only_the_lines_of_the_product_go_in(
    engine: Engine, secret: Settings, tmp_path: Path
) -> None:
    line = 'timestamp=2026-11-28T19:38:49Z level=info event="batch done" batch=12'
    structured = '{"event": "batch done", "level": "info", "timestamp": "2026-11-28T19:38:49Z"}'
    lines = [
        f"cut off {SECRET}",
        line,
        structured,
        f'{{"event": "{SECRET}"}}',
        f"DETAIL:  Key (email)=({SECRET}) is there already.",
        f"timestamp=2026-11-28T19:38:49Z level=info event=login origin={SECRET}",
    ]
    log, file = tmp_path / "worker.log", tmp_path / "night.tar.gz"
    log.write_text("\n".join(lines))
    start(engine, secret)
    assert make.make(engine, secret, file, [log, log]) == {}
    found = read(file)
    assert found["logs/1-worker.log.json"] == {"lines": [line, structured], "left_out": 4}
    assert found["logs/2-worker.log.json"] == found["logs/1-worker.log.json"]
    assert SECRET not in json.dumps(found)


def test_a_case_changes_nothing_and_is_made_where_nothing_answers(
    engine: Engine, secret: Settings, tmp_path: Path
) -> None:
    run_id = start(engine, secret)
    with transaction(engine) as connection:
        connection.exec_driver_sql("UPDATE migration.stages SET state = 'running'")
    digest = (
        "SELECT md5(string_agg(b::text, '')) || (SELECT count(*) FROM migration.events)"
        f" FROM migration.stages b WHERE run_id = '{run_id}'"
    )
    before = scalar(engine, digest)
    make.make(engine, secret, tmp_path / "open.tar.gz")
    assert scalar(engine, digest) == before
    nowhere = databases.create("postgresql://nobody@127.0.0.1:1/nowhere")
    missing = make.make(nowhere, secret, tmp_path / "down.tar.gz")
    assert {"status", "ledger"} <= set(missing)
    assert "settings.json" in read(tmp_path / "down.tar.gz")
