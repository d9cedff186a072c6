"""The list of steps: the order in which the migration happens. One file a step, one line here."""

from __future__ import annotations

from pkgutil import resolve_name

from models.engine.step import Step
from models.ledger.tables import FINISH, RECONCILIATION, VERIFICATION

__all__ = ["FINISH", "RECONCILIATION", "STEPS", "UNDO_STEPS", "VERIFICATION"]

_ORDER = (
    "models.engine.indexes:EarlyIndexes",
    "models.dashboard.organization:Organization",
    "models.engine.capture:Capture",
    "models.dashboard.users.apply:Users",
    "models.dashboard.subscriptions:Orphans",
    "models.dashboard.projects.apply:Projects",
    "models.engine.indexes:TargetIndexes",
    "models.dashboard.projects.switch:Switch",
    "models.engine.catch_up:ChangedUsers",
    "models.engine.catch_up:ChangedProjects",
    "models.engine.removed:Removed",
    "models.dashboard.credits:Credits",
    "models.engine.accounting:Accounting",
    "models.engine.catch_up:LateUsers",
    "models.engine.catch_up:LateProjects",
    "models.engine.constraints:Keys",
    "models.engine.cutover:Settle",
    "models.engine.removed:LateRemoved",
    "models.engine.constraints:Contract",
    "models.engine.totals:Totals",
    "models.engine.capture:Release",
)

# What undoes them, in stages of their own, for a run that is rolled back.
_UNDO_ORDER = (
    "models.engine.rollback:Loosen",
    "models.dashboard.projects.undo:UndoProjects",
    "models.dashboard.users.undo:UndoUsers",
    "models.engine.rollback:UndoRest",
    "models.engine.rollback:Tidy",
)

STEPS: list[Step] = [resolve_name(entry)() for entry in _ORDER]
UNDO_STEPS: list[Step] = [resolve_name(entry)() for entry in _UNDO_ORDER]


def by_name(name: str) -> Step:
    """The step of that name; raises KeyError."""
    return {step.name: step for step in (*STEPS, *UNDO_STEPS)}[name]


def stage_names() -> list[str]:
    """All stages in order: those of the steps, with verification before reconciliation."""
    names = list(dict.fromkeys(step.stage for step in STEPS if step.stage != VERIFICATION))
    names.insert(names.index(RECONCILIATION), VERIFICATION)
    return names


def undo_stage_names() -> list[str]:
    """The stages of a rollback in order."""
    return list(dict.fromkeys(step.stage for step in UNDO_STEPS))


def steps_of(stage: str) -> list[Step]:
    """The steps of a stage in order; the verification repeats each step that is verified."""
    if stage == VERIFICATION:
        repeated = [step for step in STEPS if step.is_verified and step.stage != RECONCILIATION]
        return [*repeated, *(step for step in STEPS if step.stage == VERIFICATION)]
    return [step for step in (*STEPS, *UNDO_STEPS) if step.stage == stage]


def stages_before(name: str) -> list[str]:
    """The stages that must be closed before this one opens, nearest last."""
    names = undo_stage_names() if name in undo_stage_names() else stage_names()
    before = names[: names.index(name)]
    return [stage for stage in before if not (name == RECONCILIATION and stage == VERIFICATION)]
