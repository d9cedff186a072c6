"""What the symptoms mean, in plain words, each with what was done or what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.reports.diagnosis import Blocker, Finding, Fixed
from models.reports.words import number
from producer.broker import namespace
from producer.broker.snapshot import Broker
from producer.checks import slots
from producer.doctor import symptoms
from producer.doctor.symptoms import Ledger
from producer.reports import status

MOST_NAMED = 5
# What is said besides, and keeps no run from its end.
NOTES = ("strangers", "no_ledger", "connections")
AGAIN = "Look again in some seconds: producer doctor"


@dataclass(frozen=True)
class Seen:
    """What findings are made of; `trouble` is why fixing stopped, or nothing."""

    before: Ledger
    after: Ledger
    redis: Broker
    blockers: list[Blocker]
    trouble: str
    fixed: dict[str, Fixed]
    shortage: str | None = None


def of(seen: Seen) -> list[Finding]:
    """The findings, the cause before what follows from it; never none."""
    found = [*_servers(seen), *_run(seen), *_throttled(seen), *_blocked(seen)]
    found += [*_strangers(seen), *_shortage(seen)]
    if seen.before.is_moving:
        found += [*_workers(seen), *_expired(seen), *_unpublished(seen), *_errors(seen)]
    if all(finding.kind in NOTES for finding in found):
        live, waiting = seen.before.of("running"), seen.before.of("pending")
        said = f"{number(len(live), 'batch')} running, {len(waiting):,} waiting"
        found.append(Finding(kind="working", message=f"Nothing is wrong: {said}"))
    return found


def _servers(seen: Seen) -> Iterator[Finding]:
    if seen.redis.down:
        yield Finding(
            kind="redis_down",
            message=f"Redis does not answer: {seen.redis.down}. Workers get no messages; nothing is"
            " lost, the ledger knows what is left",
            hint="Start Redis, or check REDIS_URL: host, port, user and password.",
        )
    if seen.redis.refuses:
        yield Finding(
            kind="redis_refuses_writes",
            message=f"Redis keeps refusing writes: {seen.redis.refuses}",
            hint="Give it memory (maxmemory) or disk, or delete other keys; then look again:"
            " producer doctor",
        )
    if seen.trouble:
        message = f"Not everything could be fixed. {seen.trouble}"
        yield Finding(kind="not_fixed", message=message, hint=AGAIN)


def _shortage(seen: Seen) -> Iterator[Finding]:
    if seen.shortage:
        yield Finding(kind="connections", message=seen.shortage, hint=slots.HINT)


def _strangers(seen: Seen) -> Iterator[Finding]:
    for stranger in seen.redis.strangers[:MOST_NAMED]:
        workers = ", ".join(stranger.workers[:MOST_NAMED])
        if namespace.is_strangers(stranger.prefix):
            yield Finding(
                kind="other_tables",
                message=f"Workers take no messages, since they see other tables than the run"
                f" migrates: {workers or 'gone since'}",
                hint="Give them the tables' names, the DATABASE_URL and the role, with their"
                " search_path, that the run was opened with.",
            )
        elif stranger.prefix == namespace.NO_LEDGER:
            yield Finding(
                kind="no_ledger",
                message=f"Workers on this Redis take no messages, since their database holds no"
                f" ledger: {workers or 'gone since'}",
                hint="If they should work on this run, check their DATABASE_URL.",
            )
        else:
            yield Finding(
                kind="strangers",
                message=f"Another ledger uses this Redis too, under {stranger.prefix}:"
                f" {number(stranger.messages, 'message')}, workers: {workers or 'none'}."
                " Neither touches the other's",
            )


def _run(seen: Seen) -> Iterator[Finding]:
    run = seen.after.run
    continues = status.continues(is_undone=seen.after.is_undone)
    said = {
        "paused": (
            f"is paused by {run.paused_by or 'an operator'}: no further batch starts"
            + (f". {run.error}" if run.error else ""),
            "Fix what the message names, then: producer resume"
            if run.error
            else "Continue it: producer resume",
        ),
        "cancelled": ("is cancelled", "Continue it: producer resume"),
        "failed": (f"failed: {run.error}", f"Fix what it names, then: {continues}"),
        "completed": ("is completed: it waits for nothing", ""),
        "completed_with_quarantine": (
            "is completed: it waits for nothing. Some rows are quarantined",
            "See them: producer quarantine",
        ),
        "rolling_back": ("is being rolled back", "Watch it: producer status --watch"),
        "rolled_back": ("is rolled back: it waits for nothing", ""),
    }
    if run.state in said:
        message, hint = said[run.state]
        yield Finding(kind=run.state, message=f"Run {run.id} {message}", hint=hint)


def _throttled(seen: Seen) -> Iterator[Finding]:
    if seen.after.throttled_by:
        yield Finding(
            kind="throttled",
            message=f"Workers start no batch: {seen.after.throttled_by}",
            hint="It continues by itself; the limits are in MIGRATION_THROTTLE of the workers.",
        )


def _blocked(seen: Seen) -> Iterator[Finding]:
    live = [batch.id for batch in seen.before.of("running") if not batch.expired]
    waits = f"that {'one of ' if len(live) > 1 else ''}{_batches(live)} waits for" if live else ""
    for blocker in seen.blockers:
        who = f"Session {blocker.pid} of {blocker.application or 'another program'}"
        what = ", ".join(word for word in (blocker.state, blocker.command) if word)
        yield Finding(
            kind="blocked",
            message=f"{who}{f' ({what})' if what else ''}, in its transaction for"
            f" {blocker.seconds:.0f} s, holds a lock {waits or 'that the migration waits for'}",
            hint="Let its transaction end, or end it in PostgreSQL:"
            f" SELECT pg_terminate_backend({blocker.pid})"
            if blocker.pid
            else "It is a prepared transaction: see pg_prepared_xacts.",
        )


def _workers(seen: Seen) -> Iterator[Finding]:
    if seen.redis.word != "answers":
        return
    live = [batch for batch in seen.before.of("running") if not batch.expired]
    if not seen.redis.workers and not live:
        hint = "Start one: celery -A worker worker"
        yield Finding(kind="no_worker", message="No worker is running", hint=hint)
        return
    strangers = [batch for batch in live if not _is_known(seen, batch.worker)]
    for batch in strangers[:MOST_NAMED]:
        yield Finding(
            kind="silent_worker",
            message=f"Batch {batch.id} is held by {batch.worker}, which does not answer: it is very"
            " busy, or gone",
            hint=f"Its lease ends in {batch.lease:.0f} s unless it is renewed; then another worker"
            " gets the batch.",
        )
    if seen.redis.workers:
        for name, state in symptoms.queues(seen.before, seen.redis).items():
            if not state.workers and (state.batches or state.messages):
                yield Finding(
                    kind="unserved_queue",
                    message=f"No worker consumes the queue {name}:"
                    f" {number(state.batches, 'batch')} and"
                    f" {number(state.messages or 0, 'message')} wait there",
                    hint=f"Start a worker for it: celery -A worker worker --queues {name}",
                )


def _is_known(seen: Seen, signature: str | None) -> bool:
    host, _, process = (signature or "").rpartition("/")
    return any(
        worker.name.rpartition("@")[2] == host and process in map(str, worker.processes)
        for worker in seen.redis.workers
    )


def _expired(seen: Seen) -> Iterator[Finding]:
    expired = [batch for batch in seen.before.of("running") if batch.expired]
    for batch in expired[:MOST_NAMED]:
        known = _is_known(seen, batch.worker)
        yield Finding(
            kind="lease_expired",
            message=f"The lease of batch {batch.id} expired {-batch.lease:.0f} s ago, its worker"
            f" {batch.worker} {'does not move' if known else 'is gone'}: {_fate(seen, batch)}",
            hint="" if _is_settled(seen, batch) else AGAIN,
        )
    if len(expired) > MOST_NAMED:
        message = f"{number(len(expired) - MOST_NAMED, 'more lease')} expired"
        yield Finding(kind="lease_expired", message=message)


def _is_settled(seen: Seen, batch: Any) -> bool:
    now = seen.after.batches.get(batch.id)
    return now is None or not now.expired


def _fate(seen: Seen, batch: Any) -> str:
    now = seen.after.batches.get(batch.id)
    if now is None:
        return "done meanwhile"
    if now.state == "failed":
        return "failed, since it took its workers down too often"
    return "not reopened yet" if now.expired else "reopened"


def _unpublished(seen: Seen) -> Iterator[Finding]:
    again, first = (
        seen.fixed[kind].batches if kind in seen.fixed else []
        for kind in ("published_again", "published")
    )
    if again:
        yield Finding(
            kind="lost_messages",
            message=f"{_batches(again).capitalize()} waited although the queue was empty: the"
            " messages were lost; published again",
        )
    if first:
        message = f"{_batches(first).capitalize()} had no message yet: published"
        yield Finding(kind="unpublished", message=message)
    for stage in seen.before.due:
        opened = seen.fixed.get("opened", Fixed(kind="opened")).stages
        moved = ", ".join(opened) if opened else ""
        still = stage in seen.after.due and seen.after.is_moving
        yield Finding(
            kind="not_opened",
            message=f"Nothing of the stage {stage} is under way, and what comes next was not opened"
            + (f": opened {moved}" if moved else "" if still else ": closed"),
            hint=AGAIN if still else "",
        )


def _errors(seen: Seen) -> Iterator[Finding]:
    for batch in [b for b in seen.before.of("pending") if symptoms.was_handed_back(b)][:MOST_NAMED]:
        yield Finding(
            kind="handed_back",
            message=f"Batch {batch.id} was released at attempt {batch.attempt}: {batch.error}",
            hint="It is tried again. 55P03 and 40P01 are locks of another session.",
        )
    continues = status.continues(is_undone=seen.after.is_undone)
    failed = seen.before.of("failed") if seen.after.is_moving else []
    for batch in failed[:MOST_NAMED]:
        yield Finding(
            kind="batch_failed",
            message=f"Batch {batch.id} of the stage {batch.stage} failed: {batch.error}",
            hint=f"The run fails once nothing of the stage is open; then: {continues}",
        )


def _batches(ids: Sequence[int]) -> str:
    if len(ids) == 1:
        return f"batch {ids[0]}"
    if len(ids) <= MOST_NAMED:
        return f"batches {', '.join(map(str, ids))}"
    return number(len(ids), "batch")
