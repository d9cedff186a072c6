"""What a person reads: the summary of a run, the quarantine, the schema. JSON is in `cli`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from csv import DictWriter
from itertools import groupby
from json import dumps
from operator import attrgetter
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from models.reports.checks import Check, Speed
from models.reports.diagnosis import Diagnosis
from models.reports.plan import Plan
from models.reports.run import RunReport
from models.reports.words import number
from producer.reports import live_view, spreadsheet

_NEXT = {
    "preparing": "Watch it: producer status --watch",
    "running": "Watch it: producer status --watch",
    "completed": "Nothing is left to do.",
    "completed_with_quarantine": (
        "See the quarantined rows: producer quarantine. Fix them in the legacy tables, or accept"
        " them with --accept KEY; then: producer retry --wait"
    ),
    "cancelled": "Continue it: producer resume",
    "rolling_back": "Watch it: producer status --watch",
    "rolled_back": "Migrate again whenever you like: producer enqueue-all --wait",
}


# What each kind of difference says of its source row.
KINDS = {
    "missing": "a target row that must be there is not",
    "extra": "a target row is there that must not be",
    "wrong_value": "a column has another value than it must have",
    "wrong_owner": "a target row belongs to another owner",
    "balance": "an amount is not the sum of its log",
    "unaccounted": "the source row is neither migrated nor quarantined",
    "unverified": "fewer rows were checked than there are",
    "wrongly_quarantined": "the source row is quarantined, and no rule says that it is bad",
}


_VERDICTS = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "unknown": "unknown",
    "failed": "[red]failed[/]",
}


def summary(console: Console, found: RunReport) -> None:
    """The outcome of a run in one screen, and what to do next."""
    console.print(
        f"Run [bold]{found.run_id}[/] is [bold]{found.state}[/] after {found.seconds:.1f} s"
        + (f" ({found.per_second:,.0f} {found.first[0]}/s)" if found.per_second else "")
    )
    if found.canary:
        console.print(f"A canary: {found.canary}. The other rows are left alone.")
    if found.throttled_by:
        console.print(f"[yellow]Throttled:[/] {found.throttled_by}; it continues by itself")
    counted(console, found)
    if found.error:
        console.print(Text(found.error.message, "red"))
    if found.state == "failed" and found.differences:
        console.print("See the values, and what fixes each: producer differences --values")
    elif found.state in ("failed", "paused") and found.error:
        console.print(found.error.hint, markup=False)
    elif found.state == "paused":
        console.print(live_view.paused(found), markup=False)
    elif found.canary and found.state == "completed":
        console.print(
            "The old application continues as before. Migrate all: producer enqueue-all --wait."
            f" Or undo it: producer rollback {found.run_id} --wait"
        )
    else:
        console.print(_NEXT.get(found.state or "", ""))


def counted(console: Console, found: RunReport) -> None:
    """How the legacy rows stand, what was written, and what is quarantined or differs."""
    standings = _table("legacy rows", "total", "migrated", "quarantined")
    for name, row in found.entities.items():
        standings.add_row(name, f"{row.total:,}", f"{row.migrated:,}", f"{row.quarantined:,}")
    console.print(standings)
    written = ", ".join(f"{count:,} {name}" for name, count in found.rows.items())
    amounts = [f"{v:,.2f} {n.replace('_', ' ')}" for n, v in found.amounts.items()]
    # A migration may fill columns of its sources and write no other table.
    if written or amounts:
        console.print(f"Written: {'; '.join([*([written] if written else []), *amounts])}")
    reconciled = (
        f" Reconciliation {found.reconciliation.state}:"
        f" {found.reconciliation.checked:,} {found.reconciliation.rows},"
        f" {number(found.reconciliation.discrepancies, 'discrepancy')}."
    )
    verified = (
        f"Verification {found.verification.state}:"
        f" {number(found.verification.rows_checked, 'row')},"
        f" {number(found.verification.differences, 'difference')}."
    )
    # After a rollback, and in a dry run, there is nothing that was verified.
    if found.state not in (None, "rolled_back"):
        console.print(verified + (reconciled if found.reconciliation.state != "none" else ""))
    for title, groups in (
        ("Quarantined", found.quarantine),
        ("Differences", found.differences),
        ("Not rolled back, since somebody changed or uses it", found.conflicts),
    ):
        if groups:
            parts = ", ".join(f"{count:,} {name}" for name, count in sorted(groups.items()))
            console.print(f"{title}: {parts}")


def stages(console: Console, found: RunReport) -> None:
    """Progress by stage."""
    table = _table("stage", "state", "batches", "failed", "rows", "seconds")
    for stage in found.stages:
        table.add_row(
            stage.name,
            stage.state,
            f"{stage.batches.done}/{stage.batches.total}",
            str(stage.batches.failed),
            f"{stage.rows:,}/{stage.rows_total:,}" if stage.rows_total else "",
            f"{stage.seconds:.1f}",
        )
    console.print(table)
    if found.time_left:
        console.print(f"{100 * found.progress:.0f} % done, {live_view.span(found.time_left)} left")


def rows(console: Console, found: Sequence[dict[str, Any]], empty: str) -> None:
    """A table of like rows, or the sentence that says there are none."""
    if not found:
        console.print(empty)
        return
    table = _table(*found[0])
    for row in found:
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    console.print(table)


def quarantine(
    console: Console, found: Sequence[dict[str, Any]], queries: Mapping[str, str]
) -> None:
    """The quarantined rows, a paragraph for each reason: what it means, then a key a line.

    `queries` are those that find the rows, by `entity reason`.
    """
    if not found:
        console.print("Nothing is quarantined.")
    groups = groupby(
        sorted(found, key=lambda row: (row["entity"], row["reason"], row["key"])),
        key=lambda row: (row["entity"], row["reason"]),
    )
    for (entity, reason), rows_of in groups:
        members = list(rows_of)
        console.print(f"[bold]{entity} {reason}[/], {number(len(members), 'row')}: ", end="")
        said = queries.get(f"{entity} {reason}") or members[0]["message"]
        console.print(said, markup=False, soft_wrap=True)
        for row in members:
            accepted = "  accepted" if row["state"] == "accepted" else ""
            # Never wrapped or cut: the key is what one needs.
            console.print(f"  {row['key']}{accepted}", markup=False, soft_wrap=True)


def differences(
    console: Console, found: Sequence[dict[str, Any]], fixes: Mapping[str, str]
) -> None:
    """What differs, a paragraph for each kind, and after each check the command that fixes it."""
    if not found:
        console.print("Nothing differs.")
    for stage, fix in fixes.items():
        members = [row for row in found if row["stage"] == stage]
        for kind in dict.fromkeys(row["kind"] for row in members):
            rows_of = [row for row in members if row["kind"] == kind]
            what = KINDS.get(kind, "the step's own kind")
            console.print(f"[bold]{kind}[/], {len(rows_of):,}: {what}", soft_wrap=True)
            for row in rows_of:
                place = ".".join(filter(None, (row["table"], row["detail"])))
                line = f"  {row['entity']} {row['key']}  {place}"
                console.print(line, markup=False, soft_wrap=True)
                for said in _values(row):
                    console.print(f"    {said}", markup=False, soft_wrap=True)
        console.print(f"Fix what the {stage} found: {fix}", markup=False, soft_wrap=True)
    if found and "expected" not in found[0]:
        console.print("Target keys and values: producer differences --values")


def _values(row: Mapping[str, Any]) -> list[str]:
    """The target row's key, and the values where they are known; quoted, to show blanks at ends."""
    if row.get("target_key") is None:
        return []
    shown = [f"target row {row['target_key']}"]
    if row["expected"] is not None or row["found"] is not None:
        shown += [
            f"{name} {dumps(row[name], ensure_ascii=False)}" for name in ("expected", "found")
        ]
    return shown


def csv(console: Console, found: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Rows as CSV with a header, as RFC 4180 has it."""
    writer = DictWriter(console.file, columns)
    writer.writeheader()
    writer.writerows(map(spreadsheet.cells, found))


def checks(console: Console, found: Sequence[Check]) -> None:
    """A row a thing: its verdict, what was found and what to do about it. Then the verdict on all.

    What was not looked at is said once for each cause.
    """
    looked_at = [check for check in found if not check.blocked_by]
    table = _table("", "verdict", "found, and what to do")
    for check in looked_at:
        said = f"{check.found.removesuffix('.')}. {check.hint}" if check.hint else check.found
        table.add_row(check.name, _VERDICTS[check.verdict], escape(said))
    console.print(table)
    blocked = sorted((check for check in found if check.blocked_by), key=attrgetter("blocked_by"))
    for cause, group in groupby(blocked, attrgetter("blocked_by")):
        console.print(
            f"Not looked at, see {cause}: {', '.join(check.name for check in group)}",
            soft_wrap=True,
        )
    _verdict(console, found)


def warnings(console: Console, found: Sequence[Check]) -> None:
    """What is no difference of the run, and how to list it: a line each."""
    for check in found:
        console.print(f"[yellow]Warning:[/] {check.name}: {escape(check.found)}")
        console.print(f"  {check.hint}", markup=False, soft_wrap=True)


def _verdict(console: Console, found: Sequence[Check]) -> None:
    """One line: whether it passed, and which checks failed or warn."""
    names = {
        verdict: [
            check.name for check in found if check.verdict == verdict and not check.blocked_by
        ]
        for verdict in _VERDICTS
    }
    said = [
        f"{verdict}: {', '.join(names[verdict])}"
        for verdict in ("failed", "warning", "unknown")
        if names[verdict]
    ]
    word = "[red]Not passed[/]" if names["failed"] else "[green]Passed[/]"
    console.print("; ".join([word, *map(escape, said)]) + ".", soft_wrap=True)


def speeds(console: Console, found: Sequence[Speed]) -> None:
    """Milliseconds against their limits, and the plans of queries that are too slow."""
    if not found:
        console.print("No query was measured: the migration names none.")
        return
    table = _table("", "verdict", "median", "95 %", "slowest", "limit", "")
    for speed in found:
        times = (speed.median, speed.p95, speed.maximum, speed.limit)
        table.add_row(
            speed.name,
            _VERDICTS[speed.verdict],
            *(f"{1000 * seconds:,.1f} ms" for seconds in times),
            speed.trouble,
        )
    console.print(table)
    for speed in found:
        if speed.plan:
            console.print(f"[bold]{speed.name}[/] has this plan:")
            console.print("\n".join(speed.plan), markup=False)


def plan(console: Console, found: Plan) -> None:
    """The plan by stage, then what it takes beside time."""
    table = _table("stage", "batches", "at least", "at most")
    for stage in found.stages:
        table.add_row(
            stage.name, f"{stage.batches:,}", _duration(stage.at_least), _duration(stage.at_most)
        )
    console.print(
        f"{found.rows:,} {found.of} with {found.workers} workers of one process, from a rehearsal"
        f" with {found.sample:,} {found.of}"
    )
    console.print(table)
    console.print(
        f"In all {_duration(found.seconds_at_least)}, if the server has a core for each worker, to"
        f" {_duration(found.seconds_at_most)}, if it has one.\n"
        f"WAL {found.wal_bytes / 1e9:,.2f} GB, disk {found.disk_bytes / 1e9:,.2f} GB, Redis"
        f" {found.redis_bytes / 1e6:,.1f} MB, {found.batches:,} batches, {found.statements:,}"
        f" statements, {found.connections:,} of {found.max_connections:,} connections.\n"
        f"Its first limit: {found.gives_first}."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def diagnosis(console: Console, found: Diagnosis) -> None:
    """The ledger, the queues, the workers and the sessions side by side, then what they mean."""
    console.print(f"Run [bold]{found.run_id}[/] is [bold]{found.state}[/]. Redis {_redis(found)}")
    stages = [
        {
            "stage": stage.name,
            "waiting": stage.waiting,
            "unpublished": stage.unpublished,
            "released": stage.handed_back,
            "running": stage.running,
            "lease expired": stage.expired,
            "failed": stage.failed,
            "oldest": f"{stage.oldest_waiting_seconds or 0:.0f} s",
        }
        for stage in found.stages
    ]
    queues = [
        {"queue": name, **queue.model_dump()}
        for name, queue in found.queues.items()
        if queue.batches or queue.messages or queue.workers
    ]
    work = [
        {
            "batch": work.batch_id,
            "worker": work.worker,
            "attempt": work.attempt,
            "lease left": f"{work.lease_seconds:.0f} s",
        }
        for stage in found.stages
        for work in stage.work
    ]
    unacknowledged = [
        {"unacknowledged": task, "messages": count} for task, count in found.unacknowledged.items()
    ]
    chords = [{"chord": c.id, "returned": c.returned, "of": c.size} for c in found.chords]
    sessions = [session.model_dump() for session in found.blockers]
    for table in (stages, queues, unacknowledged, chords, work, sessions):
        if table:
            rows(console, table, "")
    for finding in found.findings:
        console.print(f"[bold]{finding.kind}[/]:", end=" ")
        console.print(f"{finding.message}. {finding.hint}".strip(), markup=False)


def _redis(found: Diagnosis) -> str:
    names = ", ".join(worker.name for worker in found.workers)
    return f"{found.redis}; workers: {names or ('none' if found.redis == 'answers' else '?')}"


def schema(console: Console, found: dict[str, Any]) -> None:
    """The legacy tables and the state of the target schema."""
    legacy = [{"legacy": role, **row} for role, row in found["legacy"].items()]
    rows(console, legacy, "")
    rows(
        console,
        [
            {
                "target": name,
                "exists": "yes" if row["exists"] else "no",
                "missing columns": ", ".join(row["missing_columns"]),
            }
            for name, row in found["target"].items()
        ],
        "",
    )
    # Each on lines of its own: a column would cut the statement that fixes it.
    for each in found["obstacles"]:
        console.print(f"{'In the way' if each['is_fatal'] else 'Warning'}: {each['what']}")
        if each["fix"]:
            console.print(f"  {each['fix']}")
    if found["advice"]:
        console.print(found["advice"])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        number = column in (
            "total",
            "migrated",
            "quarantined",
            "batches",
            "failed",
            "rows",
            "seconds",
            "messages",
            "workers",
        )
        # Folded where the terminal is narrow, never cut.
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(column, justify=justify, overflow="fold")
    return table
