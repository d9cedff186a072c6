"""The rows of the crash matrix: a name, how the fault comes about, and the play that does it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults import database, deaths, failover, messages, surroundings
from tests.faults.deaths import WINDOWS, Play, killed


@dataclass(frozen=True)
class Row:
    """A fault; `is_quick` where its short form takes some seconds.

    `kills_workers` where whole workers are ended, so that somebody must start them again.
    """

    name: str
    how: str
    play: Play
    is_quick: bool = False
    moves_clock: bool = False
    kills_workers: bool = False


_POINTS = (
    ("before-claim", "before the claim", "as the claim is about to be made", deaths.BATCHES),
    ("after-claim", "after the claim", "once the claim is committed", deaths.BATCHES),
    ("before-commit", "mid-transaction", "after the last statement, before COMMIT", deaths.BATCHES),
    (
        "after-commit",
        "after COMMIT",
        "before Celery hears of it, and before the ack",
        deaths.BATCHES,
    ),
    (
        "before-count",
        "before the count",
        "the task has succeeded, and its chord has not counted it (Celery stores and counts a part"
        " in one script, so there is no moment in between)",
        deaths.BATCHES,
    ),
    ("after-count", "after the count", "the chord has counted it; before the ack", deaths.BATCHES),
    (
        "before-body",
        "before the body",
        "the chord is complete and claimed, its body not sent",
        WINDOWS,
    ),
    ("after-body", "after the body", "the body is sent, the chord not cleaned up", WINDOWS),
)
_QUICK = ("before-claim", "after-commit", "before-count", "before-body", "after-body")


def _deaths() -> list[Row]:
    rows = []
    for whom, what in (
        ("child", "a child process"),
        ("worker", "the main process and its children"),
    ):
        for point, name, when, moments in _POINTS:
            play = killed(point, whom, moments)
            how = f"SIGKILL to {what} of a worker: {when}."
            is_quick = whom == "child" and point in _QUICK
            kills = whom == "worker"
            rows.append(Row(f"{whom} killed {name}", how, play, is_quick, kills_workers=kills))
    return rows


def _failovers() -> list[Row]:
    """At six moments, with each kind of address."""
    rows = []
    for stage in ("organization", "users", "projects", "switch", "verification", "finish"):
        for by, address in (("hosts", "the address of both hosts"), ("proxy", "a proxy")):
            how = (
                "SIGKILL to the primary and its backends after a batch of the stage; its standby,"
                " which received nothing for half a second, is promoted. The product finds it by"
                f" {address}."
            )
            play = failover.fails_over(stage, through_proxy=by == "proxy")
            is_quick = (stage, by) == ("users", "proxy")
            rows.append(Row(f"failover in {stage}, {by}", how, play, is_quick=is_quick))
    return rows


ROWS = (
    Row("no fault", "An undisturbed run, to compare with.", deaths.nothing),
    *_deaths(),
    Row(
        "child killed in a canary or after it",
        "SIGKILL to a child process of a worker mid-transaction: in a canary of half of the users,"
        " or in the full run that follows.",
        deaths.killed_with_canary,
        is_quick=True,
    ),
    Row(
        "main process killed alone",
        "SIGKILL to the main process once a child has committed a claim; the kernel ends the"
        " children with it.",
        killed("after-claim", "main"),
        kills_workers=True,
    ),
    Row(
        "worker killed with a message in hand",
        "SIGKILL to all of a worker between BRPOP and the record of the unacknowledged message.",
        killed("before-record", "worker"),
        kills_workers=True,
    ),
    Row(
        "message back after an hour",
        "The worker is killed after COMMIT, and its message's time in Redis is set two hours back:"
        " the next worker consumes it as after the visibility timeout.",
        deaths.comes_back_late,
        kills_workers=True,
        moves_clock=True,
    ),
    Row(
        "worker frozen after the claim",
        "SIGSTOP to a child that has committed its claim, its lease set back in the ledger; SIGCONT"
        " once another one has done the batch: the late commit must be refused.",
        deaths.frozen("after-claim"),
        is_quick=True,
        moves_clock=True,
    ),
    Row(
        "worker frozen mid-transaction",
        "The same after the batch's statements, with their row locks held.",
        deaths.frozen("after-statement"),
        moves_clock=True,
    ),
    Row(
        "one batch kills three workers",
        "SIGKILL to whichever child has committed a claim of one and the same page of users, three"
        " times; the lease is set back after each. The page is split.",
        deaths.poisonous,
        moves_clock=True,
    ),
    Row(
        "worker killed while publishing",
        "SIGKILL to a child before one of the messages of a window that it opens.",
        killed("before-message", "child", deaths.BATCHES),
    ),
    Row(
        "producer killed early",
        "SIGKILL to `producer enqueue-all` at one of its first 400 statements, which try a run,"
        " build the schema and try again; it is run again.",
        deaths.producer_killed_early,
    ),
    Row(
        "producer killed before publishing",
        "SIGKILL to `producer enqueue-all` between the ledger's COMMIT and the first message.",
        deaths.producer_killed,
    ),
    Row(
        "producer killed while publishing",
        "SIGKILL to `producer enqueue-all` with one to seven messages of a window of eight out.",
        deaths.producer_killed_publishing,
        kills_workers=True,
    ),
    Row("two producers", "`producer enqueue-all` twice at once.", deaths.two_producers, True),
    Row(
        "clock jumps by an hour",
        "time.time() and time.monotonic() of one of two workers jump by an hour in the middle of"
        " the run, forward and back in turn; C code and the database see no jump.",
        deaths.clock_jumps,
        is_quick=True,
        moves_clock=True,
    ),
    Row(
        "4 to 1 to 4 workers",
        "Three of four workers get SIGTERM or, with their children, SIGKILL in turn, and are"
        " started again: 20 changes of scale in one run, of batches of two rows, which a trigger"
        " makes last 0.1 s more. The leases of killed workers are set back.",
        deaths.scaled,
        kills_workers=True,
        moves_clock=True,
    ),
    Row("messages twice", "Every publish is done twice, all run long.", messages.twice, True),
    Row(
        "messages in random order",
        "The queues are shuffled in Redis before the first worker starts, and all run long.",
        messages.shuffled,
        is_quick=True,
    ),
    Row(
        "message ten minutes late",
        "A message is held back, its batch's published_at set back by ten minutes; it comes when"
        " the run has gone on without it.",
        messages.late,
        moves_clock=True,
    ),
    Row("message lost", "A message is taken from a queue and thrown away.", messages.dropped),
    Row(
        "chord keys deleted",
        "All keys of chords are deleted once, in the middle of the run.",
        messages.chord_keys_deleted,
        is_quick=True,
    ),
    Row(
        "results expired",
        "The keys of results and chords expire at once, all run long: hardly a chord ever fires.",
        messages.results_expired,
    ),
    Row("Redis flushed", "FLUSHALL in the middle of the run.", messages.flushed),
    Row(
        "Redis killed, data kept",
        "SIGKILL to Valkey, and a start from its log.",
        messages.redis_killed,
        is_quick=True,
    ),
    Row(
        "Redis killed, data lost",
        "SIGKILL to Valkey, and a start from nothing.",
        messages.redis_killed_and_emptied,
    ),
    Row(
        "Redis replica promoted",
        "SIGKILL to Valkey; its replica, which received nothing for half a second, takes its place"
        " behind a proxy.",
        failover.redis_promoted,
    ),
    Row(
        "Redis demoted",
        "The replica takes Valkey's place behind a proxy; the connections to the old one stay open,"
        " and it refuses writes there (READONLY).",
        failover.redis_demoted,
    ),
    Row(
        "Redis silent for 30 s",
        "SIGSTOP to Valkey for 30 seconds (3 in the short form).",
        messages.redis_frozen,
        is_quick=True,
    ),
    Row(
        "Redis full for 10 s",
        "maxmemory of 1 byte for 10 seconds (2 in the short form).",
        messages.redis_full,
    ),
    Row(
        "connection cut mid-statement",
        "pg_terminate_backend for a batch whose statement waits for a row.",
        database.cut,
        is_quick=True,
    ),
    Row(
        "PostgreSQL killed and restarted",
        "SIGQUIT to the postmaster (what `pg_ctl stop -m immediate` sends), and a start.",
        database.restarted,
        is_quick=True,
    ),
    *_failovers(),
    Row(
        "PostgreSQL's host vanishes",
        "All packets to and from the primary are dropped, those of new connections too, and its"
        " standby is promoted. The product finds it by the address of both hosts. (Without root, a"
        " proxy takes the packets and answers nothing, and the product asks after 10 seconds"
        " instead of 60.)",
        failover.vanished,
    ),
    Row(
        "PostgreSQL silent behind a proxy",
        "The connections that a proxy holds are still acknowledged and never answered; new ones"
        " lead to the promoted standby. The product asks after 10 seconds instead of 60.",
        failover.silent,
    ),
    Row(
        "PostgreSQL read-only for 20 s",
        "default_transaction_read_only is on for 20 seconds (3 in the short form).",
        failover.read_only,
        is_quick=True,
    ),
    Row(
        "deadlock",
        "A client that holds the last user of a page locks the others in descending order, and"
        " waits longer than the batch for the deadlock to be found: the batch is the victim.",
        database.deadlocked,
        is_quick=True,
    ),
    Row(
        "rows locked for a minute",
        "A client holds every user's row for 60 seconds (3 in the short form).",
        database.locked,
        is_quick=True,
    ),
    Row(
        "statement timeout",
        "statement_timeout is 500 ms in the workers, and a trigger sleeps 50 ms a user of one page"
        " of 30.",
        database.slow,
        is_quick=True,
    ),
    Row(
        "repeatable read as default",
        "default_transaction_isolation of the database is repeatable read, and the application"
        " changes e-mails until the cutover.",
        surroundings.repeatable_read,
    ),
    Row(
        "two environments on one Redis",
        "Another database with a worker and a run of its own uses the same Redis at the same time.",
        surroundings.shared_redis,
    ),
    Row(
        "worker with another search_path",
        "One of two workers resolves the tables' names in another schema, where they exist too.",
        surroundings.other_search_path,
    ),
    Row(
        "disk full",
        "A trigger fails the first ten writes of tools with SQLSTATE 53100. A disk that is really"
        " full would need root; what PostgreSQL tells the client is the same.",
        database.disk_full,
    ),
)
assert len({row.name for row in ROWS}) == len(ROWS)
