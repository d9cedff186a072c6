"""Commands that open, steer, check and undo runs."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from operator import call
from typing import Any

import click

from producer.cli.asking import (
    RUN,
    WAIT,
    confirm,
    end,
    open_engine,
    open_ledger,
    open_ready,
    require_terminal,
    wait_for,
)
from producer.cli.command import cli, command, console, results

# For all rules about the application's rows.
INTEGRITY_SECONDS = 600


@command(cli, "enqueue-all", blank="run:EnqueueReport")
@WAIT
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what the run would write for some rows, and change nothing.",
)
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    metavar="N",
    help="A canary: N % of the first table's rows, with all that belongs to them. No switch.",
)
@click.option(
    "--only", multiple=True, metavar="KEYS", help="A canary of the rows with these keys: A,B,C."
)
def enqueue_all(wait: bool, dry_run: bool, percent: float | None, only: tuple[str, ...]) -> Any:
    """Start the migration: prepare the schema and open a run, or join the open one."""
    if (percent is not None) + bool(only) + dry_run > 1:
        raise click.UsageError("--percent, --only and --dry-run exclude each other.")
    if dry_run:
        return _dry_run(wait)
    from models.ledger.selection import Choice
    from models.reports.run import EnqueueReport
    from producer import connect, tracing
    from producer.reports import status as report
    from producer.runs import advance, begin

    engine, settings = connect.engine(), connect.settings().base
    keys = tuple(key for word in only for key in word.split(",") if key)
    choice = Choice(percent, keys) if only or percent is not None else None
    run_id, is_new = begin.begin(engine, settings, choice)
    console.print(f"Run {run_id}" + ("" if is_new else " is open already: joined"))
    # The one that opened it is the root of its trace.
    traced = tracing.command(settings, "enqueue-all", run_id) if is_new else nullcontext()
    with traced:
        advance.begin(engine, settings, run_id)
        if wait:
            found, ended = wait_for(run_id)
            return EnqueueReport(**dict(found)), ended
    found = report.read(engine, run_id)
    results.print("Watch it: producer status --watch")
    return EnqueueReport(**dict(found))


def _dry_run(wait: bool) -> Any:
    """Migrate a page on copies of the tables, and undo it: the object of --json."""
    from models.reports.run import EnqueueReport
    from models.reports.words import number
    from producer import connect
    from producer.checks import dry_run
    from producer.reports import terminal as output

    if wait:
        raise click.UsageError("--dry-run and --wait exclude each other.")
    found, rehearsed = dry_run.run(open_engine(), connect.settings().base)
    output.counted(results, found)
    if rehearsed.refused:
        results.print(
            f"The database refused pages with {number(rehearsed.refused, 'row')}: producer check"
        )
    results.print("This was a page of the rows, on copies. Nothing was changed.")
    return EnqueueReport(**dict(found), dry_run=True, refused=rehearsed.refused)


@command(cli, "status", blank="run:StatusReport")
@RUN
@click.option("--watch", is_flag=True, help="Follow the run until its end.")
@click.option(
    "--history", is_flag=True, help="List all runs, and what operators did, newest first."
)
def status(run: str | None, watch: bool, history: bool) -> Any:
    """Show progress, rate, time left, quarantined rows and differences of a run."""
    from models.reports.run import StatusReport
    from producer.reports import differing, happened
    from producer.reports import status as report
    from producer.reports import terminal as output

    engine = open_ledger()
    if history:
        runs, actions = report.history(engine), report.actions(engine)
        events = happened.read(engine)
        for line in [*happened.of_runs(runs), "", *happened.lines(actions, events)]:
            results.print(line, markup=False, soft_wrap=True)
        return StatusReport(runs=runs, actions=actions, events=events)
    found = report.read(engine, run)
    if watch and found.run_id:
        found, ended = wait_for(found.run_id)
        return StatusReport(**dict(found)), ended
    output.stages(results, found)
    output.summary(results, found)
    if found.differences:
        output.rows(results, differing.first(engine, found.run_id), "")
        results.print("All of them, and what fixes them: producer differences")
    return StatusReport(**dict(found)), found.exit_status


@command(cli, "differences", blank={"rows": [], "fixes": {}})
@RUN
@click.option(
    "--values", is_flag=True, help="Show target keys, expected and found values: row data."
)
@click.option("--csv", "as_csv", is_flag=True, help="Print them as CSV on stdout.")
def differences(run: str | None, values: bool, as_csv: bool) -> Any:
    """List what verification and reconciliation found, and the commands that fix it."""
    from producer import connect
    from producer.reports import differing
    from producer.reports import terminal as output

    engine = open_ledger()
    found = differing.read(engine, run)
    fixes = differing.fixes(found)
    shown = found
    if values:
        found = differing.with_values(engine, connect.settings().base, run, found)
    if as_csv:
        output.csv(results, found, differing.VALUE_COLUMNS if values else differing.COLUMNS)
    else:
        # Row data goes to stdout alone, and with --json this goes to stderr.
        output.differences(results, shown if results.stderr else found, fixes)
    return {"rows": found, "fixes": fixes, "error": None}


@command(cli, "retry")
@RUN
@WAIT
def retry(run: str | None, wait: bool) -> Any:
    """Retry the failed batches, and the rows that are quarantined or differ; nothing else."""
    from producer import connect
    from producer.runs import control

    return end(control.retry(open_ready(), connect.settings().base, run), wait)


@command(cli, "verify", blank="run:VerifyReport")
@RUN
@WAIT
def verify(run: str | None, wait: bool) -> Any:
    """Compare every legacy row with every row it must have produced, again.

    With --wait it also warns of rows of the application that break a rule; see `producer health`.
    """
    from models.ledger.tables import VERIFICATION
    from models.reports.run import VerifyReport
    from producer import connect
    from producer.checks import integrity
    from producer.reports import terminal as output
    from producer.runs import control

    engine, settings = open_ready(), connect.settings().base
    ended = end(control.check_again(engine, settings, run, VERIFICATION), wait)
    if not wait:
        return VerifyReport(**dict(ended))
    found, status = ended
    broken = integrity.examine(engine, settings, seconds=INTEGRITY_SECONDS)
    warnings = [check for check in broken if check.verdict != "ok"]
    output.warnings(results, warnings)
    return VerifyReport(**dict(found), warnings=warnings), status


@command(cli, "reconcile")
@RUN
@WAIT
def reconcile(run: str | None, wait: bool) -> Any:
    """Run the reconciliation again, such as each balance against its log."""
    from models.ledger.tables import RECONCILIATION
    from producer import connect
    from producer.runs import control

    return end(
        control.check_again(open_ready(), connect.settings().base, run, RECONCILIATION), wait
    )


@command(cli, "pause")
@RUN
def pause(run: str | None) -> Any:
    """Pause a run: no further batch starts, and running ones end."""
    from producer.runs import control

    return end(control.pause(open_ledger(), run), False)


@command(cli, "resume")
@RUN
def resume(run: str | None) -> Any:
    """Resume a paused or cancelled run."""
    from producer import connect
    from producer.runs import control

    return end(control.resume(open_ready(), connect.settings().base, run), False)


@command(cli, "cancel")
@RUN
@click.option("--yes", is_flag=True, help="Do not ask.")
def cancel(run: str | None, yes: bool) -> Any:
    """Stop a run. What it wrote stays and is consistent; `resume` continues it."""
    from producer.reports import status as report
    from producer.runs import control

    require_terminal("Cancel the run?", yes)
    engine = open_ledger()
    found = report.read(engine, run)
    control.require_move(found, "cancelled")
    confirm(
        f"Cancel run {found.run_id} ({found.state}, {found.first[1].migrated:,} of"
        f" {found.first[1].total:,} {found.first[0]} migrated)?",
        yes,
    )
    return end(control.cancel(engine, found.run_id), False)


@command(cli, "tune", blank={"run_id": None, "batch_size": None, "throttle": None, "window": None})
@RUN
@click.option("--batch-size", metavar="N", help="Rows in a batch, or auto.")
@click.option(
    "--throttle", metavar="LIMITS", help="As MIGRATION_THROTTLE, or: default (each worker's own)."
)
@click.option(
    "--window",
    metavar="HOURS",
    help="As MIGRATION_WINDOW, or: always, or: default (each worker's own).",
)
def tune(run: str | None, batch_size: str | None, throttle: str | None, window: str | None) -> Any:
    """Change batch size, throttle and window of an open run, or show what it has."""
    from producer.runs import tune as tuning

    found = tuning.tune(open_ledger(), run, batch_size=batch_size, throttle=throttle, window=window)
    for name in ("batch_size", "throttle", "window"):
        value = found[name]
        said = "as each worker's settings say" if value is None else value or "always"
        results.print(f"{name.replace('_', ' ')}: {said}", markup=False)
    return {**found, "error": None}


@command(cli, "rollback", blank="run:RollbackReport")
@RUN
@WAIT
@click.option("--force", is_flag=True, help="Also undo what somebody changed since.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def rollback(run: str | None, wait: bool, force: bool, yes: bool) -> Any:
    """Undo what the runs wrote, newest first, or only RUN; keep what was changed since."""
    from models.reports.words import number
    from producer import connect, outage
    from producer.reports import status as report
    from producer.reports import terminal as output
    from producer.runs import rollback as undo

    keep_trying = outage.Patience(console.print).until_done if wait else call
    engine, settings = open_ready(), connect.settings().base
    chosen = undo.targets(engine, run, force=force)
    named = ", ".join(f"run {each.id} ({number(each.rows, 'row')})" for each in chosen)
    confirm(f"Roll back {named}{', also what was changed since' if force else ''}?", yes)
    undone: list[str] = []
    status, has_kept = 0, False
    for each in chosen if wait else chosen[:1]:
        start = partial(undo.start, engine, settings, each.id, force=force)
        # Once one is undone, the others are waited for like the rest of it.
        run_id = keep_trying(start) if undone else start()
        ended = end(run_id, wait)
        found = ended[0] if wait else ended
        kept = keep_trying(partial(report.first_conflicts, engine, run_id))
        if kept:
            has_kept = True
            output.rows(results, kept, "")
            results.print("changed: somebody changed it. held: a changed or new row refers to it.")
            results.print("All of them are in the table migration.conflicts.")
            if any(row["kind"] != "irreversible" for row in kept):
                results.print(f"To undo them, too: producer rollback {run_id} --force --wait")
        if found.state != "rolled_back":
            status = 1 if found.state == "failed" else 0
            break
        undone.append(run_id)
    left = keep_trying(partial(undo.left, engine))
    for each in left:
        results.print(f"Run {each.id} ({number(each.rows, 'row')}) is not rolled back.")
    if left:
        results.print(f"Next: {undo.next_command(left[0], force)}")
    answer = found.model_dump() | {"rolled_back": undone, "standing": [each.id for each in left]}
    return answer, status or (3 if left or has_kept else 0)


@command(cli, "forget", blank={"run_id": None, "dropped": 0})
@click.argument("run")
@click.option("--yes", is_flag=True, help="Do not ask.")
def forget(run: str, yes: bool) -> Any:
    """Drop a finished run's before-images; it cannot be rolled back after that."""
    from models.reports.words import number
    from producer.reports import status as report
    from producer.runs import rollback as undo

    engine = open_ledger()
    run_id = report.read(engine, run).run_id
    confirm(f"Drop the before-images of run {run_id}? It cannot be rolled back then.", yes)
    run_id, dropped = undo.forget(engine, run_id)
    results.print(f"{number(dropped, 'before-image')} of run {run_id} dropped")
    return {"run_id": run_id, "dropped": dropped, "error": None}


@command(cli, "quarantine", blank={"rows": [], "queries": {}, "accepted": 0, "unaccepted": 0})
@RUN
@click.option(
    "--accept",
    "accepts",
    multiple=True,
    metavar="KEY",
    help="Accept that this row is not migrated.",
)
@click.option("--unaccept", "opens", multiple=True, metavar="KEY", help="Take an --accept back.")
@click.option("--reason", metavar="R", help="Only rows with this reason.")
@click.option("--entity", metavar="E", help="Only rows of this entity.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N rows of each reason.")
@click.option("--preview", is_flag=True, help="List the rows that a run would quarantine.")
@click.option("--csv", "as_csv", is_flag=True, help="Print all rows as CSV on stdout.")
@click.argument("more", nargs=-1, metavar="[KEY]...")
def quarantine(
    run: str | None,
    accepts: tuple[str, ...],
    opens: tuple[str, ...],
    reason: str | None,
    entity: str | None,
    limit: int | None,
    preview: bool,
    as_csv: bool,
    more: tuple[str, ...],
) -> Any:
    """List the quarantined rows by reason; accept those that are not to be migrated."""
    from models.reports.words import number
    from producer import connect
    from producer.checks import forecast
    from producer.reports import status as report
    from producer.reports import terminal as output
    from producer.runs import acceptance

    if sum(map(bool, (accepts, opens, preview))) > 1:
        raise click.UsageError("--accept, --unaccept and --preview exclude each other.")
    engine = open_ledger()
    changed = 0
    queries: dict[str, str] = {}
    if keys := accepts or opens:
        # `--accept A B C`: click gives B to RUN and the rest to KEY, so take them together.
        rest = [*([run] if run else []), *more]
        known = {row["run_id"] for row in report.history(engine)}
        run = next((word for word in rest if word in known), None)
        keys = (*keys, *(word for word in rest if word != run))
        settings = connect.settings().base
        changed = acceptance.accept(engine, settings, run, keys, takes_back=bool(opens))
        console.print(
            f"{number(changed, 'row')} {'accepted' if accepts else 'no longer accepted'}, dependent"
            " rows included. Next: producer retry --wait"
        )
    if preview:
        settings = connect.settings().base
        rows, queries, unsure = forecast.preview(engine, settings, reason, entity, limit)
        if unsure:
            console.print(f"Not known before the run: {unsure}", markup=False)
    else:
        rows = report.quarantined(engine, run, reason=reason, entity=entity, limit=limit)
    if as_csv:
        output.csv(results, rows, report.QUARANTINE_COLUMNS)
    elif not keys:
        output.quarantine(results, rows, queries)
        if limit:
            results.print(f"At most {number(limit, 'row')} of each reason: --limit.")
    return {
        "rows": rows,
        "queries": queries,
        "accepted": changed if accepts else 0,
        "unaccepted": changed if opens else 0,
        "error": None,
    }
