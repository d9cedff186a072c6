"""The rows of `check` about the tables: what was found in the way, and what a trial met."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine

from models.engine import current
from models.engine.copy import Copy
from models.errors import TooBig, Transient
from models.postgres.rows import estimate
from models.preflight.examine import Preflight
from models.preflight.obstacles import CONSTRAINTS, LEGACY, PRIVILEGES, TARGET, Obstacle
from models.reports.checks import Check
from models.settings import Settings
from producer.checks import examples, trial
from producer.checks.verdicts import look, unknown
from producer.schema import upgrade

# Without these nothing can be read of a table.
_READING = ("SELECT", "BYPASSRLS")


def skipped(name: str, cause: str) -> Check:
    """The row of what was not looked at, since the check named `cause` has failed."""
    return Check(
        name=name, verdict="unknown", found=f"not looked at: see {cause}", blocked_by=cause
    )


def blocked_by(found: Preflight) -> str:
    """The row that must be fixed before rows of the legacy tables can be read; empty for none."""
    if found.sources is None or not found.is_sound:
        return LEGACY
    lacks = [each.what for each in found.obstacles if each.row == PRIVILEGES]
    return PRIVILEGES if any(what.startswith(_READING) for what in lacks) else ""


def rows(connection: Connection, found: Preflight) -> list[Check]:
    """A row for the legacy tables, the privileges, the target tables, and their constraints."""
    checks = [_row(LEGACY, found.obstacles, _legacy(connection, found))]
    if found.sources is None:
        return [*checks, *(skipped(name, LEGACY) for name in (PRIVILEGES, TARGET, CONSTRAINTS))]
    lacks = _row(PRIVILEGES, found.obstacles, "owner of the tables, may create")
    if (
        lacks.verdict == "failed"
        and found.is_sound
        and upgrade.is_current(connection, found.sources)
    ):
        # What workers need is tried by the trial.
        lacked = [each.what for each in found.obstacles if each.row == PRIVILEGES]
        if all(what.startswith(("ownership", "CREATE")) for what in lacked):
            lacks.verdict = "warning"
            lacks.hint = "The producer and workers of migration.control need them; others do not."
    checks.append(lacks)
    if found.is_sound:
        checks.append(_row(TARGET, found.obstacles, _target(found)))
    else:
        checks.append(skipped(TARGET, LEGACY))
    checks.append(_row(CONSTRAINTS, found.obstacles, "none beyond keys"))
    return checks


def try_out(engine: Engine, settings: Settings, before: Sequence[Check]) -> Check:
    """The row of the trial; it is not made where a row before says that it must fail."""
    for check in before:
        if check.verdict == "failed" or (check.name, check.verdict) == (LEGACY, "unknown"):
            return skipped(trial.ROW, check.name)
    return look(trial.ROW, lambda: _tried(engine, settings), _not_made)


def _not_made(message: str) -> Check:
    hint = "Try again when no other session locks the tables or their rows."
    return unknown(f"could not be made: {message}", hint)


def _tried(engine: Engine, settings: Settings) -> Check:
    try:
        found = trial.run(engine, settings)
    except (Transient, TooBig) as error:
        return _not_made(error.message)
    if found.is_missing:
        return unknown(f"could not be made: {found.is_missing}", found.remedy)
    where = "on the tables themselves" if found.is_real else "on copies of the tables"
    plural = current.migration().sources[0].plural
    said = f"{found.first} {plural}, {found.rows:,} rows in all went through {where}, all undone"
    return _row(trial.ROW, found.obstacles, f"{said}; {found.note}" if found.note else said)


def _row(name: str, found: Sequence[Obstacle], otherwise: str) -> Check:
    own = [obstacle for obstacle in found if obstacle.row == name]
    if not own:
        return Check(name=name, verdict="ok", found=otherwise)
    own.sort(key=lambda obstacle: not obstacle.is_fatal)
    hints = dict.fromkeys(obstacle.hint for obstacle in own if obstacle.hint)
    return Check(
        name=name,
        verdict="failed" if own[0].is_fatal else "warning",
        found="; ".join(obstacle.what for obstacle in own),
        hint=" ".join(hint if hint.endswith(".") else f"{hint}." for hint in hints),
    )


def _legacy(connection: Connection, found: Preflight) -> str:
    """What the run would go through, by the planner's estimate."""
    if found.sources is None or not found.is_sound:
        return ""
    counted = ", ".join(
        f"about {estimate(connection, table):,} {name}"
        for name, table in found.sources.by_plural.items()
    )
    names = ", ".join(table.label for table in found.sources.values())
    return f"{counted}; keys {found.sources.first.key.type}; {names}"


def _target(found: Preflight) -> str:
    there = found.target.tables if found.target else {}
    wanted = current.migration().schema.tables
    adopted = sum(name in there for name in wanted)
    if adopted:
        return f"{adopted} are there and fit, {len(wanted) - adopted} will be created"
    return f"{len(wanted)} will be created"


def play_examples(engine: Engine, settings: Settings, before: Sequence[Check]) -> list[Check]:
    """The rows of the steps' examples, and of rules that are verified by themselves."""
    steps = [step for step in current.migration().authored if isinstance(step, Copy)]
    if not steps:
        return []
    cause = next((check.name for check in before if check.verdict == "failed"), "")
    if cause:
        return [skipped(name, cause) for name in ("examples", "expectations")]
    wrong = examples.play(engine, settings)
    played = Check(name="examples", verdict="ok", found=f"{examples.count()} come out as they say")
    if wrong:
        played.verdict, played.found = "failed", "; ".join(wrong)
        played.hint = "Correct the step or its example."
    repeated = [each for step in steps for each in step.repeated_rules()]
    said = Check(name="expectations", verdict="ok", found="rules are said in other words")
    if repeated:
        said.verdict, said.found = "warning", f"repeat the rule of: {', '.join(repeated)}"
        said.hint = (
            "A mistake in such a rule verifies itself. Say it in other words in expects: from the"
            " specification, not from the step."
        )
    return [played, said]
