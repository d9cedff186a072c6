"""What a step must say of itself before a run opens: how its rows are verified, and how undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from models.engine.authored import Authored
from models.engine.step import Step
from models.errors import Misconfigured
from models.ledger.tables import RECONCILIATION, VERIFICATION


def require_declared(steps: Sequence[Step], undo_steps: Sequence[Step]) -> None:
    """Raise Misconfigured for the first step that leaves something out, and say what to write."""
    undoing = {step.name for step in undo_steps}
    for step in steps:
        for problem in _problems(step, undoing):
            raise Misconfigured(
                f"The step {step.name} {problem}",
                hint=f"Write it in class {type(step).__name__}: see docs/your-own-migration.md.",
            )


def _problems(step: Step, undoing: set[str]) -> Iterator[str]:
    if isinstance(step, Authored) and not step.expects:
        yield (
            "does not say what must be there after it: write expects = [Expect('table', 'SELECT"
            " s.id AS source_key, ... FROM {source} s WHERE ...')]. A rule that nobody says a"
            " second time cannot be verified"
        )
    checks = type(step).differences is not Step.differences or (
        type(step).details is not Step.details
    )
    lists_keys = type(step).key_lists is not Step.key_lists
    if step.takes_lists != lists_keys:
        yield (
            "overrides key_lists: say takes_lists = True"
            if lists_keys
            else "says takes_lists = True: override key_lists"
        )
    if step.is_verified and not checks:
        yield "says is_verified = True: override differences or details"
    if step.is_verified and step.unverified:
        yield "says both is_verified = True and unverified: choose one"
    writes = (step.entity or type(step).table is not Step.table) and (
        step.stage not in (VERIFICATION, RECONCILIATION)
    )
    if writes and not (step.is_verified or step.unverified):
        yield (
            "writes rows and does not say how they are verified: override differences and say"
            " is_verified = True, or say unverified = 'why'"
        )
    if step.undone_by and step.irreversible:
        yield "says both undone_by and irreversible: choose one"
    if step.undone_by and step.undone_by not in undoing:
        yield f"says undone_by = '{step.undone_by}': the list of undo steps has no such name"
    if writes and not (step.undone_by or step.irreversible):
        yield (
            "writes rows and does not say how they are undone: say undone_by = 'name of an undo"
            " step', or irreversible = 'why'"
        )
