"""The command `producer`: thin; every decision is in the module that a command calls."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import structlog
from kombu.exceptions import OperationalError
from pydantic import BaseModel
from redis.exceptions import RedisError
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from models.engine.migration import RECONCILIATION, VERIFICATION
from models.errors import MigrationError, Misconfigured
from models.messages import (
    Check,
    Checks,
    Diagnosis,
    ErrorReport,
    Plan,
    RunReport,
    Speed,
    Speeds,
)
from models.postgres.database import classify
from models.settings import load, unknown
from producer import logs

Command = Callable[..., Any]
console = Console(stderr=True, highlight=False)


def command(
    group: click.Group,
    name: str,
    *,
    blank: dict[str, Any] | None = None,
    says_database: bool = True,
) -> Callable[[Command], Command]:
    """A command with --json and --debug, whose errors end as a message and an exit status.

    It says first which database it works on, unless it settles that itself.

    The function returns what --json prints, or a pair of that and the exit status; after an error
    that is `blank` (a run's report with nothing in it, unless said) with the error in it.
    """

    def wrap(function: Command) -> Command:
        @group.command(name)
        @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
        @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
        @functools.wraps(function)
        def run(*args: Any, as_json: bool, debug: bool, **values: Any) -> None:
            status = 0
            try:
                # Before any question: a wrong setting is refused by its name.
                load()
                if says_database:
                    _say_database()
                result = function(*args, **values)
                if isinstance(result, tuple):
                    result, status = result
            except (click.ClickException, click.Abort):
                raise
            except Exception as failure:
                error = _as_ours(failure)
                if debug:
                    click.echo(logs.places(failure), err=True)
                console.print(f"[red]Error:[/] {error.message}", markup=True)
                if error.hint:
                    console.print(error.hint, markup=False)
                status = error.exit_status
                result = _failed(error.kind, error.message, error.hint, blank)
            if as_json:
                click.echo(_json(result))
            sys.exit(status)

        return run

    return wrap


def _failed(kind: str, message: str, hint: str, blank: dict[str, Any] | None = None) -> Any:
    error = ErrorReport(kind=kind, message=message, hint=hint)
    if blank is None:
        return RunReport(error=error)
    return {**blank, "error": error.model_dump()}


def _as_ours(failure: Exception) -> MigrationError:
    if isinstance(failure, MigrationError):
        return failure
    if isinstance(failure, DBAPIError):
        return classify(failure)
    from producer.connect import unreachable_redis

    if isinstance(failure, RedisError | OperationalError):
        return unreachable_redis(failure)
    if isinstance(failure, OSError) and failure.strerror:
        what = f"{failure.filename}: " if isinstance(failure.filename, str) else ""
        return MigrationError(
            f"{what}{failure.strerror}",
            hint="Make it readable and writable, or name another place. See also MIGRATION_HOME.",
        )
    return MigrationError(
        f"This should not have happened: {type(failure).__name__}",
        hint="Run it again with --debug for the traceback. The ledger is consistent.",
    )


_database: list[str] = []


def _say_database() -> None:
    from models.postgres import database
    from producer import connect

    _database.append(database.name_of(connect.engine()))
    console.print(f"Database: {_database[-1]}", soft_wrap=True, markup=False)


def _json(result: Any) -> str:
    """The one object on stdout; `database` is null where it is not known."""
    values = result.model_dump(mode="json") if isinstance(result, BaseModel) else result or {}
    return json.dumps({"database": _database[-1] if _database else None, **values}, default=str)


class Declined(MigrationError):
    """A question was answered with no."""

    kind = "declined"


RUN = click.argument("run", required=False, metavar="[RUN]")
WAIT = click.option("--wait", is_flag=True, help="Wait for the end, with progress.")


def main() -> None:
    """The console script: wrong usage gives one JSON object too, where --json asks for it."""
    # Whatever the reconciler logs while a command runs: stdout is for the one object.
    structlog.configure(
        processors=[logs.render, *structlog.get_config()["processors"]],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logs.install()
    for line in unknown():
        console.print(f"Warning: {line}", markup=False)
    try:
        sys.exit(cli.main(standalone_mode=False))
    except click.ClickException as wrong:
        wrong.show()
        if "--json" in sys.argv:
            click.echo(_json(_failed("usage", wrong.format_message(), "See: producer --help")))
        sys.exit(wrong.exit_code)
    except (click.Abort, KeyboardInterrupt):
        console.print("Stopped. An open run continues without this command: producer status")
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Moves a dashboard's users, subscriptions and projects to the new schema.

    Start with `producer demo`. On your own database, set DATABASE_URL and REDIS_URL, start
    workers with `celery -A worker worker`, then run `producer enqueue-all --wait`.
    """


@cli.group()
def schema() -> None:
    """The target schema and the ledger."""


@cli.group()
def repair() -> None:
    """What was damaged after a migration: one fix each, for one user or all."""


@cli.group()
def servers() -> None:
    """The embedded PostgreSQL and Redis-compatible servers."""


@command(cli, "enqueue-all")
@WAIT
def enqueue_all(wait: bool) -> Any:
    """Prepare the schema, open a run and fan out its batches; joins a run that is open."""
    from models.postgres import database
    from producer import connect, tracing
    from producer.broker import readiness
    from producer.checks import preflight
    from producer.reports import status as report
    from producer.runs import advance
    from producer.schema import upgrade as schema_step

    engine, settings = connect.engine(), connect.settings().base
    tracing.require(settings)
    database.check_reachable(engine)
    readiness.require()
    is_proved = preflight.require(engine, settings)
    schema_step.upgrade(engine, settings)
    if not is_proved:
        preflight.require(engine, settings, is_upgraded=True)
    run_id, is_new = advance.open_run(engine, settings)
    console.print(f"Run {run_id}" + ("" if is_new else " is open already: joined"))
    # The one that opened it is the root of its trace.
    traced = tracing.command(settings, "enqueue-all", run_id) if is_new else nullcontext()
    with traced:
        advance.advance(engine, settings, run_id)
        if wait:
            return _wait(run_id)
    found = report.read(engine, run_id)
    console.print("Watch it: producer status --watch")
    return found


@command(cli, "status")
@RUN
@click.option("--watch", is_flag=True, help="Follow the run until its end.")
@click.option("--history", is_flag=True, help="All runs, and what operators did, newest first.")
def status(run: str | None, watch: bool, history: bool) -> Any:
    """Progress by stage, rate, time left, what is set aside and what differs."""
    from producer.reports import status as report
    from producer.reports import terminal as output

    engine = _engine()
    if history:
        runs, actions = report.history(engine), report.actions(engine)
        output.rows(console, runs, "No run yet")
        output.rows(console, actions, "")
        return {"runs": runs, "actions": actions, "error": None}
    found = report.read(engine, run)
    if watch and found.run_id:
        return _wait(found.run_id)
    output.stages(console, found)
    output.summary(console, found)
    if found.differences:
        output.rows(console, report.first_differences(engine, found.run_id), "")
        console.print("All of them are in the table migration.differences.")
    return found, found.exit_status


@command(cli, "report", blank={"run_id": None, "file": None})
@RUN
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write it; below MIGRATION_HOME by default.",
)
def write_report(run: str | None, output: Path | None) -> Any:
    """A run as one HTML file: outcome, plots, rows set aside, credits, what happened."""
    from producer import connect
    from producer.reports import html
    from producer.reports import status as report

    engine = _engine()
    run_id = report.read(engine, run).run_id
    file = html.write(engine, connect.settings().base, run_id, output)
    console.print(f"The report of run {run_id} is in {file}", soft_wrap=True)
    return {"run_id": run_id, "file": str(file), "error": None}


@command(cli, "serve", blank={})
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8484, show_default=True)
def serve(host: str, port: int) -> Any:
    """The console in the browser: runs, what failed, and pause, resume, cancel, retry."""
    from producer import connect
    from producer.console import server as serving

    _engine()
    serving.run(connect.settings().base, host, port, console)
    return {"error": None}


@command(cli, "doctor", blank=Diagnosis().model_dump())
@RUN
def doctor(run: str | None) -> Any:
    """What a run waits for, in plain words; mends lost messages, dead leases, stuck stages."""
    from producer import connect
    from producer.doctor import examine as diagnosis
    from producer.reports import terminal as output

    found = diagnosis.examine(_engine(), connect.settings().base, run)
    output.diagnosis(console, found)
    return found


@command(cli, "plan", blank=Plan().model_dump())
@click.option("--users", type=click.IntRange(1), help="Plan for so many; those there by default.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True)
def plan(users: int | None, workers: int) -> Any:
    """Time, load and size of a run, from a rehearsal on a sample that is rolled back."""
    from producer import connect
    from producer.checks import plan as planning
    from producer.reports import terminal as output

    found = planning.make(_engine(), connect.settings().base, users, workers)
    output.plan(console, found)
    return found


@command(cli, "retry")
@RUN
@WAIT
def retry(run: str | None, wait: bool) -> Any:
    """Try failed batches and the rows set aside again, and only those."""
    from producer import connect
    from producer.runs import control

    return _end(control.retry(_ready(), connect.settings().base, run), wait)


@command(cli, "verify")
@RUN
@WAIT
def verify(run: str | None, wait: bool) -> Any:
    """Compare every legacy row with every row it must have produced, again."""
    from producer import connect
    from producer.runs import control

    return _end(control.check_again(_ready(), connect.settings().base, run, VERIFICATION), wait)


@command(cli, "reconcile")
@RUN
@WAIT
def reconcile(run: str | None, wait: bool) -> Any:
    """Compare every balance with its credit log, again."""
    from producer import connect
    from producer.runs import control

    return _end(control.check_again(_ready(), connect.settings().base, run, RECONCILIATION), wait)


@command(cli, "pause")
@RUN
def pause(run: str | None) -> Any:
    """Let no further batch start; the ones under way end."""
    from producer.runs import control

    return _end(control.pause(_engine(), run), False)


@command(cli, "resume")
@RUN
def resume(run: str | None) -> Any:
    """Go on with a paused or cancelled run."""
    from producer import connect
    from producer.runs import control

    return _end(control.resume(_ready(), connect.settings().base, run), False)


@command(cli, "cancel")
@RUN
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(run: str | None, yes: bool) -> Any:
    """Stop a run; what it wrote stays, is consistent, and `resume` goes on with it."""
    from producer.reports import status as report
    from producer.runs import control

    _require_terminal("Cancel the run?", yes)
    engine = _engine()
    found = report.read(engine, run)
    control.require_move(found, "cancelled")
    _confirm(
        f"Cancel run {found.run_id} ({found.state}, {found.users.migrated:,} of"
        f" {found.users.total:,} users migrated)?",
        yes,
    )
    return _end(control.cancel(engine, found.run_id), False)


@command(cli, "check", blank=Checks().model_dump())
def check() -> Any:
    """Versions, disk, memory, privileges, tables, locks, bad rows, and a trial on a few rows."""
    from producer import connect
    from producer.checks import check as checks
    from producer.reports import terminal as output

    found = checks.examine(connect.engine(), connect.settings().base)
    output.checks(console, found)
    return _checked(Checks(checks=found), found)


ALL_REDIS = click.option(
    "--all-redis-databases",
    "all_redis",
    is_flag=True,
    help="Every database of the Redis servers, not only those that the settings name.",
)


@command(cli, "backup", blank={"folder": None, "manifest": None})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--config",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The dashboard's configuration files; ./config where it is there.",
)
@ALL_REDIS
def backup(folder: Path, config: Path | None, all_redis: bool) -> Any:
    """Database, Redis and configuration files into a new folder, with checksums of all."""
    from producer import connect
    from producer.backup import create as saving

    started = time.monotonic()
    engine, settings = _engine(), connect.settings()
    if config is None and Path("config").is_dir():
        config = Path("config")
    manifest = saving.make(
        engine,
        settings.database_url,
        settings.redis_urls,
        folder,
        config,
        console.print,
        all_redis=all_redis,
    )
    size = sum(manifest["bytes"].values()) / 1_000_000
    console.print(
        f"{folder} is complete: {size:,.1f} MB in {time.monotonic() - started:.1f} s."
        f" Configuration files: {config.absolute() if config else 'none (see --config)'}."
        f" Put it back: producer restore {folder}",
        soft_wrap=True,
    )
    return {"folder": str(folder.absolute()), "manifest": manifest, "error": None}


@command(cli, "restore", blank={"folder": None, "manifest": None})
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask before something is replaced.")
@ALL_REDIS
def restore(folder: Path, yes: bool, all_redis: bool) -> Any:
    """Put a backup back, after its checksums are verified, and prove that it is all there."""
    from producer import connect
    from producer.backup import restore as restoring

    engine, settings = connect.engine(), connect.settings()
    plan = restoring.plan(engine, settings.redis_urls, folder, all_redis=all_redis)
    if "config" in plan.manifest and Path(plan.manifest["config"]).exists():
        plan.replaced.append(f"the files in {plan.manifest['config']}")
    if plan.replaced:
        _confirm(f"Replace {'; '.join(plan.replaced)}?", yes)
    manifest = restoring.put_back(engine, settings.database_url, plan, folder, console.print)
    console.print("Restored, and equal to the backup row by row and key by key.")
    return {"folder": str(folder.absolute()), "manifest": manifest, "error": None}


@command(cli, "health", blank=Checks().model_dump())
def health() -> Any:
    """Database, Redis, workers, queues, Flower and the endpoints of MIGRATION_API_URLS."""
    from producer import connect
    from producer.checks import health as checking
    from producer.reports import terminal as output

    found = checking.examine(connect.engine(), connect.settings().base)
    output.checks(console, found)
    return _checked(Checks(checks=found), found)


@command(cli, "metrics", blank={"address": None})
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for everywhere.")
@click.option("--port", type=click.IntRange(1, 65535), default=9464, show_default=True)
def metrics(host: str, port: int) -> Any:
    """Serve the newest run's figures to Prometheus, from the ledger, until it is stopped."""
    from producer import connect
    from producer.reports import metrics as ledger

    engine = connect.engine()
    console.print(f"Metrics at http://{host}:{port}/metrics")
    ledger.serve(engine, host, port)
    return {"address": f"http://{host}:{port}/metrics", "error": None}


@command(cli, "performance", blank=Speeds().model_dump())
def performance() -> Any:
    """Response times of MIGRATION_API_URLS, and of what the dashboard asks the new tables."""
    from producer import connect
    from producer.checks import performance as measuring
    from producer.reports import terminal as output

    found = measuring.measure(_engine(), connect.settings().base)
    output.speeds(console, found)
    return _checked(Speeds(speeds=found), found)


@command(cli, "rollback", blank=RunReport().model_dump() | {"rolled_back": [], "standing": []})
@RUN
@WAIT
@click.option("--force", is_flag=True, help="Undo what was changed since, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(run: str | None, wait: bool, force: bool, yes: bool) -> Any:
    """Undo what every run wrote, newest first, or RUN; keeps and lists what was changed since."""
    from producer import connect
    from producer.reports import status as report
    from producer.reports import terminal as output
    from producer.runs import rollback as undo

    engine, settings = _ready(), connect.settings().base
    chosen = undo.targets(engine, run, force=force)
    named = ", ".join(f"run {each.id} ({each.users:,} users)" for each in chosen)
    _confirm(f"Roll back {named}{', also what was changed since' if force else ''}?", yes)
    undone, status, has_kept = [], 0, False
    for each in chosen if wait else chosen[:1]:
        run_id = undo.start(engine, settings, each.id, force=force)
        ended = _end(run_id, wait)
        found: RunReport = ended[0] if wait else ended
        kept = report.first_conflicts(engine, run_id)
        if kept:
            has_kept = True
            output.rows(console, kept, "")
            console.print("All of them are in the table migration.conflicts.")
            if any(row["kind"] != "irreversible" for row in kept):
                console.print(f"To undo them, too: producer rollback {run_id} --force --wait")
        if found.state != "rolled_back":
            status = 1 if found.state == "failed" else 0
            break
        undone.append(run_id)
    left = undo.left(engine)
    for each in left:
        console.print(f"Run {each.id} ({each.users:,} users) is not rolled back.")
    if left:
        console.print(f"Next: {undo.next_command(left[0], force)}")
    answer = found.model_dump() | {"rolled_back": undone, "standing": [each.id for each in left]}
    return answer, status or (3 if left or has_kept else 0)


@command(cli, "forget", blank={"run_id": None, "dropped": 0})
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(run: str, yes: bool) -> Any:
    """Drop a finished run's before-images; after that it cannot be rolled back."""
    from producer.reports import status as report
    from producer.runs import rollback as undo

    engine = _engine()
    run_id = report.read(engine, run).run_id
    _confirm(f"Drop the before-images of run {run_id}? It cannot be rolled back then.", yes)
    run_id, dropped = undo.forget(engine, run_id)
    console.print(f"{dropped:,} before-images of run {run_id} dropped")
    return {"run_id": run_id, "dropped": dropped, "error": None}


@command(cli, "quarantine", blank={"rows": [], "accepted": 0})
@RUN
@click.option("--accept", "keys", multiple=True, metavar="KEY", help="Accept a row that stays out.")
@click.argument("more", nargs=-1, metavar="[KEY]...")
def quarantine(run: str | None, keys: tuple[str, ...], more: tuple[str, ...]) -> Any:
    """The rows set aside, with their reasons; accepts those that stay out (--accept KEY …)."""
    from producer import connect
    from producer.reports import status as report
    from producer.reports import terminal as output
    from producer.runs import control

    engine = _engine()
    accepted = 0
    if keys:
        # `--accept A B C`: click gives B to RUN and the rest to KEY, so take them together.
        rest = [*([run] if run else []), *more]
        known = {row["run_id"] for row in report.history(engine)}
        named = next((word for word in rest if word in known), None)
        accepted = control.accept(
            engine, connect.settings().base, named, [*keys, *(w for w in rest if w != named)]
        )
        run = named
        console.print(f"{accepted} accepted. Close the run: producer retry --wait")
    rows = report.quarantined(engine, run)
    output.rows(console, rows, "Nothing is set aside.")
    return {"rows": rows, "accepted": accepted, "error": None}


@command(cli, "demo", says_database=False)
@click.option("--users", type=click.IntRange(1), default=5_000, show_default=True)
def demo(users: int) -> Any:
    """The whole migration on embedded servers and generated data, from nothing to its end."""
    from producer.demo import demo as show

    found = show.run(users, console)
    _say_database()
    # A demonstration has dirty rows on purpose: rows set aside are its right end.
    return found, 0 if found.exit_status == 3 else found.exit_status


_REPAIRED: dict[str, Any] = {"changed": 0, "changes": [], "left_alone": [], "dry_run": False}
USER = click.option("--user", metavar="ID", help="One user; all by default.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show each change, and make none.")


@command(repair, "missing-data", blank=_REPAIRED)
@USER
@DRY_RUN
def repair_missing_data(user: str | None, dry_run: bool) -> Any:
    """Fill in the type, tier and activity of migrated users where they are null."""
    return _repair("missing-data", user, dry_run)


@command(repair, "tools", blank=_REPAIRED)
@USER
@DRY_RUN
def repair_tools(user: str | None, dry_run: bool) -> Any:
    """Create the tools, assignments and usage logs that subscriptions and projects lack."""
    return _repair("tools", user, dry_run)


@command(repair, "credits", blank=_REPAIRED)
@USER
@DRY_RUN
@click.option("--force", is_flag=True, help="Also users who were charged without a log row.")
def repair_credits(user: str | None, dry_run: bool, force: bool) -> Any:
    """Set each balance to what the user's credit log gives; the audit keeps what it was."""
    return _repair("credits", user, dry_run, force)


@command(schema, "upgrade", blank={"added": []})
def upgrade() -> Any:
    """Add the ledger and what the target schema lacks; changes nothing when it is there."""
    from producer import connect
    from producer.schema import upgrade as schema_step

    added = schema_step.upgrade(_engine(), connect.settings().base)
    for kind, table, name in added:
        console.print(f"added {kind} {name}" + (f" on {table}" if table not in ("", name) else ""))
    if not added:
        console.print("The schema is up to date.")
    return {"added": [{"kind": k, "table": t, "name": n} for k, t, n in added], "error": None}


@command(schema, "downgrade", blank={"dropped": [], "lost": {}})
@click.option("--yes", is_flag=True, help="Do not ask.")
def downgrade(yes: bool) -> Any:
    """Drop what the upgrade and the runs added, after a rollback; says first what would be lost."""
    from producer import connect
    from producer.reports import terminal as output
    from producer.schema import downgrade as dropping

    engine, settings = _engine(), connect.settings().base
    lost = dropping.would_lose(engine, settings)
    full = [{"would be lost": name, "rows": count} for name, count in lost.items() if count]
    output.rows(console, full, "Nothing would be lost.")
    _confirm("Drop the target schema and the ledger, with what is listed above?", yes)
    dropped = dropping.downgrade(engine, settings)
    console.print(f"{len(dropped)} objects dropped" if dropped else "There was nothing to drop.")
    return {
        "dropped": [{"kind": k, "table": t, "name": n} for k, t, n in dropped],
        "lost": lost,
        "error": None,
    }


@command(schema, "show", blank={"schema": None, "legacy": {}, "target": {}})
def show_schema() -> Any:
    """The legacy tables as found, and what of the target schema exists."""
    from producer import connect
    from producer.reports import terminal as output
    from producer.schema import upgrade as schema_step

    found = schema_step.describe(_engine(), connect.settings().base)
    output.schema(console, found)
    return {**found, "error": None}


@command(servers, "stop", blank={"stopped": False}, says_database=False)
def stop() -> Any:
    """Stop the embedded servers of MIGRATION_HOME; their data stay."""
    from producer import embedded

    stopped = embedded.stop(load().home.absolute())
    console.print("Stopped." if stopped else "No embedded server was running.")
    return {"stopped": stopped, "error": None}


def _repair(what: str, user: str | None, dry_run: bool, force: bool = False) -> Any:
    from producer import connect
    from producer import repair as repairing
    from producer.reports import terminal as output

    settings = connect.settings().base
    found = repairing.run(_engine(), settings, what, user=user, dry_run=dry_run, force=force)
    output.rows(console, found["changes"][:100], "Nothing to repair.")
    if found["changed"]:
        done = "would be made" if dry_run else "made"
        console.print(
            f"{found['changed']:,} changes {done}"
            + ("; --json shows more" if found["changed"] > 100 else "")
        )
    if found["left_alone"]:
        output.rows(console, found["left_alone"], "")
        console.print(
            "Left alone: these users were charged for usage without a log row, which the log's sum"
            " would give back. Correct them all the same: producer repair credits --force"
        )
    return {**found, "error": None}, 3 if found["left_alone"] else 0


def _checked(result: Checks | Speeds, found: Sequence[Check | Speed]) -> Any:
    passed = all(each.verdict != "failed" for each in found)
    return result.model_copy(update={"passed": passed}), 0 if passed else 5


def _engine() -> Any:
    from models.postgres import database
    from producer import connect

    engine = connect.engine()
    database.check_reachable(engine)
    return engine


def _ready() -> Any:
    """The engine, where database and Redis can carry a run."""
    from producer.broker import readiness

    engine = _engine()
    readiness.require()
    return engine


def _end(run_id: str, wait: bool) -> Any:
    from producer.reports import status as report
    from producer.reports import terminal as output

    if wait:
        return _wait(run_id)
    found = report.read(_engine(), run_id)
    output.summary(console, found)
    return found


def _wait(run_id: str) -> tuple[RunReport, int]:
    from producer import connect
    from producer.reports import terminal as output
    from producer.runs import wait as waiting

    found = waiting.until_over(_engine(), connect.settings().base, run_id, console)
    output.summary(console, found)
    return found, found.exit_status


def _require_terminal(question: str, yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise Misconfigured(f"{question} There is no terminal to ask.", hint="Add --yes.")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    question = f"Database {_database[-1]}: {question[0].lower()}{question[1:]}"
    _require_terminal(question, yes)
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        # Ctrl-C, or the end of the input.
        console.print()
        agreed = False
    if not agreed:
        raise Declined("Nothing was changed.")
