"""The list of steps: the order in which the migration happens. One file a step, one line here."""

from __future__ import annotations

from models.steps.base import Step
from models.steps.contract import Contract
from models.steps.credits import Credits
from models.steps.indexes import LegacyIndex, TargetIndexes
from models.steps.organization import Organization
from models.steps.orphans import Orphans
from models.steps.projects import Projects
from models.steps.removed import Removed
from models.steps.switch import Switch
from models.steps.users import Users

STEPS: list[Step] = [
    LegacyIndex(),
    Organization(),
    Users(),
    Orphans(),
    Projects(),
    TargetIndexes(),
    Switch(),
    Removed(),
    Credits(),
    Contract(),
]

VERIFICATION = "verification"
RECONCILIATION = "reconciliation"
FINISH = "finish"


def by_name(name: str) -> Step:
    """The step of that name; raises KeyError."""
    return {step.name: step for step in STEPS}[name]


def stage_names() -> list[str]:
    """All stages in order: those of the steps, with verification before reconciliation."""
    names = list(dict.fromkeys(step.stage for step in STEPS))
    names.insert(names.index(RECONCILIATION), VERIFICATION)
    return names


def steps_of(stage: str) -> list[Step]:
    """The steps of a stage in order; the verification repeats every step that it can check."""
    if stage == VERIFICATION:
        checked = Step.differences
        return [
            step
            for step in STEPS
            if step.stage != RECONCILIATION and type(step).differences is not checked
        ]
    return [step for step in STEPS if step.stage == stage]


def stages_after(name: str) -> list[str]:
    """The stages that must be closed before this one opens, nearest last."""
    names = stage_names()
    before = names[: names.index(name)]
    return [stage for stage in before if not (name == RECONCILIATION and stage == VERIFICATION)]
