"""The live view of a run: what `wait` shows at a terminal, and prints elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from models.reports.run import Recovery, RunReport, Stage, TimeLeft, WorkerProcess
from models.reports.words import number

BAR_WIDTH, MOST_HANDS, MOST_REASONS = 10, 8, 6
_LABEL_WIDTH = 14
_STATES = {
    "done": "done",
    "running": "running",
    "pending": "waiting",
    "failed": "failed",
    "split": "split",
    "quarantined": "quarantined",
}
_RECOVERIES = {
    "expired": "{} whose worker died or froze given to others",
    "lost": "{} whose message was lost sent again",
    "split": "{} that took workers down split",
}


def screen(found: RunReport) -> RenderableType:
    """The whole view, at most 80 columns wide; nothing of it needs a colour."""
    stages = Table.grid(padding=(0, 1))
    stages.add_column(width=_LABEL_WIDTH, no_wrap=True)
    stages.add_column(width=BAR_WIDTH)
    for justify in ("right", "right", "left", "right"):
        stages.add_column(justify=justify, no_wrap=True)
    for stage in found.stages:
        done, total = extent(stage)
        share = f"{100 * done / total:.0f} %" if total else ""
        stages.add_row(
            stage.name,
            ProgressBar(total=total or 1, completed=done, width=BAR_WIDTH),
            f"{done:,}/{total:,}" if total else "",
            share,
            stage.state,
            _rate(stage),
        )
    facts = Table.grid(padding=(0, 1))
    facts.add_column(width=_LABEL_WIDTH, no_wrap=True)
    facts.add_column(max_width=64)
    for name, what in _facts(found):
        facts.add_row(name, Text(what))
    return Group(Text(headline(found)), stages, facts)


def headline(found: RunReport) -> str:
    """The run in one line."""
    parts = [f"Run {found.run_id} is {found.state}", f"{100 * found.progress:.0f} % done"]
    if found.time_left:
        parts.append(f"{span(found.time_left)} left")
    return ", ".join(parts)


def span(left: TimeLeft) -> str:
    """A range of time as one would say it: `20 to 50 s`, `3 to 5 min`, `1.5 to 2.2 h`."""
    low, high = left.at_least, left.at_most
    if high >= 7200:
        return f"{low / 3600:.1f} to {high / 3600:.1f} h"
    unit, divisor = ("s", 1) if high < 180 else ("min", 60)
    first, last = f"{low / divisor:.0f}", f"{high / divisor:.0f}"
    return f"{last} {unit}" if first == last else f"{first} to {last} {unit}"


def paused(found: RunReport) -> str:
    """Who paused the run and when, and how it is resumed."""
    parts = [f"Run {found.run_id} is paused"]
    if found.paused_by:
        parts.append(f"by {found.paused_by}")
    if found.paused_at:
        moment = datetime.fromisoformat(found.paused_at).astimezone()
        parts.append(f"at {moment:%H:%M}" if moment.date() == date.today() else f"on {moment:%x}")
    return f"{' '.join(parts)}. Resume it with: producer resume {found.run_id}"


def failures(console: Console, found: RunReport, before: RunReport | None) -> None:
    """Batches that failed since the last look, by their cause: in red, and in a pipe as well."""
    known = before.failures if before else {}
    for cause, count in found.failures.items():
        more = count - known.get(cause, 0)
        if more > 0:
            which = number(more, "batch")
            so_far = "" if more == count else f" ({count:,} so far)"
            console.print(Text(f"Failed: {which}{so_far}, {cause}", "red"), soft_wrap=True)


def news(console: Console, found: RunReport, before: RunReport | None) -> None:
    """Away from a terminal: one line whenever something changed, or a tenth more is done."""
    running = [stage.name for stage in found.stages if stage.state == "running"]
    if before is None or _place(found) != _place(before):
        rate = sum(stage.rows_per_second for stage in found.stages)
        console.print(
            f"{headline(found)}: {', '.join(running) or found.state}"
            + (f", {rate:,.0f} rows/s" if rate else ""),
            soft_wrap=True,
        )
    was = before and before.throttled_by
    if found.throttled_by and not was:
        console.print(f"Throttled: {found.throttled_by}; it continues by itself")
    elif was and not found.throttled_by:
        console.print("No longer throttled")
    recovery, last = (report and report.live and report.live.recovery for report in (found, before))
    if recovery and (not last or recovery.seconds_ago < last.seconds_ago):
        console.print(f"Reconciler: {recovered(recovery)}", soft_wrap=True)


def _place(found: RunReport) -> tuple[list[tuple[str, str]], int]:
    states = [(stage.name, stage.state) for stage in found.stages]
    return states, int(10 * found.progress)


def _facts(found: RunReport) -> Iterator[tuple[str, str]]:
    if found.live is None:
        return
    if found.canary:
        yield "canary", found.canary
    yield "batches", batches(found)
    reasons = sorted(found.quarantine.items(), key=lambda pair: -pair[1])
    if reasons:
        more = sum(count for _, count in reasons[MOST_REASONS:])
        parts = [f"{count:,} {reason}" for reason, count in reasons[:MOST_REASONS]]
        yield "quarantined", ", ".join([*parts, *([f"{more:,} more"] if more else [])])
    for place, hand in enumerate(found.live.hands[:MOST_HANDS]):
        yield "" if place else "workers", doing(hand)
    if len(found.live.hands) > MOST_HANDS:
        yield "", f"and {len(found.live.hands) - MOST_HANDS} more"
    if found.throttled_by:
        yield "throttled", f"{found.throttled_by}; it continues by itself"
    if found.live.recovery:
        yield "reconciler", recovered(found.live.recovery)


def batches(found: RunReport) -> str:
    """The batches of all stages by state."""
    counts = {
        words: sum(getattr(stage.batches, state) for stage in found.stages)
        for state, words in _STATES.items()
    }
    return ", ".join(f"{count:,} {words}" for words, count in counts.items() if count) or "none yet"


def doing(hand: WorkerProcess) -> str:
    """What one worker process does, and has done."""
    does = "waits for work"
    if hand.batch_id is not None:
        again = f", attempt {hand.attempt}" if hand.attempt > 1 else ""
        does = f"{hand.stage}, batch {hand.batch_id}{again}, {hand.seconds:.0f} s"
        if hand.lease_seconds is not None and hand.lease_seconds < 0:
            does += ", its lease expired"
    return f"{hand.worker} {does}; {hand.batches:,} done"


def recovered(recovery: Recovery) -> str:
    """What the reconciler did last."""
    batches = number(recovery.batches, "batch")
    return f"{_RECOVERIES[recovery.kind].format(batches)}, {recovery.seconds_ago:.0f} s ago"


def _rate(stage: Stage) -> str:
    """Rows a second: now, and on average where that differs; the average alone when it is over."""
    average = stage.rows / stage.seconds if stage.seconds else 0.0
    if not average or stage.state == "pending":
        return ""
    if stage.state != "running":
        return f"{average:,.0f}/s"
    return f"{stage.rows_per_second:,.0f}/s, {average:,.0f} avg"


def extent(stage: Stage) -> tuple[int, int]:
    """Done, and in all: rows, or batches where a stage goes through no table of rows."""
    if stage.rows_total > 0:
        return stage.rows, stage.rows_total
    return stage.batches.done, stage.batches.total
