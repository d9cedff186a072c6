"""Halving a batch that fails, down to the row, inside the batch's own transaction.

Bad rows are quarantined one by one, in O(bad · log n) statements; what is too big runs in halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from models.engine.step import Context, Counts, Scope, Step, add
from models.errors import BadRow, MigrationError, Misconfigured, TooBig
from models.ledger.quarantine import OWNER_IS_QUARANTINED, OWNER_QUARANTINED, are_rejected
from models.postgres import sessions
from models.postgres.catalog import name_triggers
from models.postgres.database import STATEMENT_TIMEOUT_MS, as_ours
from models.postgres.deferred import CHECK_NOW, DEFER_AGAIN
from worker import refusals, verify

# A batch takes about two seconds. Once it has failed for its size, its parts have this much in
# proportion to their rows: the whole minute at each halving would be half an hour for one row.
PARTS_TIMEOUT_MS, SHORTEST_TIMEOUT_MS = 20_000, 5_000


def apply(context: Context, step: Step, scope: Scope) -> Counts:
    """Apply a scope; where a row of it is bad or it is too big, halve it, down to that row."""
    prepared = step.prepare(context, scope)
    trial = _Trial(context, step)
    try:
        return add(prepared, _first(trial, context, scope))
    except (BadRow, TooBig) as error:
        trial.undo()
        if step.table(context) is None:
            raise
        keys = step.keys_in(context, scope)
        trial.keys = keys
        # No key: the application deleted the row meanwhile.
        counts = trial.halve(scope, keys, error) if keys else {}
    if trial.quarantine():
        counts = add(counts, step.withdraw(context, scope))
    return add(prepared, counts) | {"bisected": {"statements": trial.statements}}


def _first(trial: _Trial, context: Context, scope: Scope) -> Counts:
    """The whole scope: optimistically, and where that fails, with all guards."""
    if not context.may_be_there(scope):
        try:
            return trial.run(replace(scope, is_optimistic=True))
        except BadRow:
            trial.undo()
    return trial.run(scope)


def check(context: Context, stage: str, step: Step, scope: Scope) -> Counts:
    """Verify a scope: optimistically, then guarded; in halves where a statement takes too long."""
    try:
        try:
            return _check_once(context, stage, step, scope, is_optimistic=True)
        except BadRow:
            return _check_once(context, stage, step, scope, is_optimistic=False)
    except TooBig:
        keys = step.keys_in(context, scope)
        if len(keys) <= 1:
            raise
        first, second = (check(context, stage, step, scope.only(half)) for half in _halves(keys))
        return add(first, second)


def _check_once(
    context: Context, stage: str, step: Step, scope: Scope, *, is_optimistic: bool
) -> Counts:
    with as_ours(), context.connection.begin_nested():
        return verify.check(context, stage, step, scope, is_optimistic=is_optimistic)


class _Trial:
    """Attempts at parts of a batch, under one savepoint that moves along: what passed stays."""

    def __init__(self, context: Context, step: Step) -> None:
        self._context, self._step = context, step
        self._plural = context.migration.plural(step.entity)
        self._part_plural = context.migration.plural(step.part_entity)
        self._has_failed = False
        self._rejected: list[tuple[str, Sequence[str], str, MigrationError]] = []
        # The whole batch once it has failed: a part of its rows has that part of the time.
        self.keys: Sequence[str] = ()
        # The dependents of the row that is tried.
        self._dependents: Sequence[str] = ()
        self._refusals = {kind: refusals.Refusals(kind) for kind in (step.entity, step.part_entity)}
        # Sent because the batch failed as a whole.
        self.statements = 0
        # Deferred: where a transaction has several trials, the one before has checked at once.
        self._mark = f"{DEFER_AGAIN}; SAVEPOINT passed" if context.may_defer else "SAVEPOINT passed"
        sessions.precede(context.connection, self._mark)

    def run(self, scope: Scope, rows: int = 0) -> Counts:
        """One attempt; an attempt that fails is undone before the next one begins."""
        context, before = self._context, None
        if self.keys:
            share = max(SHORTEST_TIMEOUT_MS, PARTS_TIMEOUT_MS * rows // len(self.keys))
            going_on = self._going_on(f"SET LOCAL statement_timeout = {share}")
            before = refusals.writes(context, going_on)
        self._has_failed = True
        self.statements += 1
        with as_ours():
            counts = self._step.apply(context, scope)
            if before is not None:
                self._note(refusals.writes(context, CHECK_NOW) - before)
            elif context.may_defer:
                context.connection.exec_driver_sql(CHECK_NOW)
        self._has_failed = False
        return counts

    def _note(self, written: Counter[str]) -> None:
        """Note which kinds of rows the database takes."""
        step = self._step
        self._refusals[step.entity].any_written |= bool(written)
        self._refusals[step.part_entity].any_written |= written[step.part_table] > 0

    def undo(self) -> None:
        """Undo a failed attempt, so that the transaction can be used."""
        self._context.connection.exec_driver_sql(self._going_on(""))

    def _going_on(self, then: str) -> str:
        """Keep or undo the last attempt: the statements for it, which must be sent at once."""
        passed = f"RELEASE SAVEPOINT passed; {self._mark}"
        mark = "ROLLBACK TO SAVEPOINT passed" if self._has_failed else passed
        self._has_failed = False
        self.statements += 1
        return f"{mark}; {then}"

    def halve(self, scope: Scope, keys: Sequence[str], error: MigrationError) -> Counts:
        """The rows of a scope that failed as a whole."""
        if len(keys) == 1:
            return self._one(scope.only(keys), error)
        return self._both(keys, error, scope.only, lambda half, why: self.halve(scope, half, why))

    def _both(
        self,
        keys: Sequence[str],
        error: MigrationError,
        scope_of: Callable[[Sequence[str]], Scope],
        deeper: Callable[[Sequence[str], MigrationError], Counts],
    ) -> Counts:
        left, right = _halves(keys)
        try:
            counts = self.run(scope_of(left), len(left))
        except (BadRow, TooBig) as failure:
            counts = deeper(left, failure)
        else:
            if isinstance(error, BadRow):
                # The left half is good, so the bad row is in the right one: no need to ask.
                return add(counts, deeper(right, error))
        try:
            return add(counts, self.run(scope_of(right), len(right)))
        except (BadRow, TooBig) as failure:
            return add(counts, deeper(right, failure))

    def _one(self, scope: Scope, error: MigrationError) -> Counts:
        """One legacy row that fails: alone it may pass, and then one of its dependents is bad."""
        step, context = self._step, self._context
        was_tried = self._has_failed
        if was_tried:
            self.undo()
        dependents = step.part_keys_in(context, scope)
        self.statements += 1
        self._dependents = parts = dependents if scope.parts is None else scope.parts
        if parts:
            try:
                counts = self.run(scope.with_parts([]), 1)
            except (BadRow, TooBig) as alone:
                error = alone
            else:
                return add(counts, self._parts(scope, parts, error))
        elif not was_tried:
            # It was inferred from its neighbours: the row itself has the last word.
            try:
                return self.run(scope, 1)
            except (BadRow, TooBig) as alone:
                error = alone
        self._refuse(step.entity, scope.keys or (), error, lambda: self._rows_after(scope))
        counts = {self._plural: {"total": 1, "quarantined": 1}}
        if dependents:
            self._rejected.append((step.part_entity, dependents, OWNER_QUARANTINED, error))
            counts[self._part_plural] = {"total": len(dependents), "quarantined": len(dependents)}
        return counts

    def _parts(self, scope: Scope, parts: Sequence[str], error: MigrationError) -> Counts:
        """The dependents of one row, down to the one that fails. The row itself has passed."""
        name = self._plural
        if len(parts) == 1:
            try:
                counts = self.run(scope.with_parts(parts), 1)
            except (BadRow, TooBig) as alone:
                self._refuse(
                    self._step.part_entity,
                    parts,
                    alone,
                    lambda: self._parts_after(scope, parts[0]) + self._rows_after(scope),
                )
                return {self._part_plural: {"total": 1, "quarantined": 1}}
        else:
            counts = self._both(
                parts, error, scope.with_parts, lambda half, why: self._parts(scope, half, why)
            )
        return {what: value for what, value in counts.items() if what != name}

    def _rows_after(self, scope: Scope) -> list[Scope]:
        """The rows of the batch that come after the scope's own."""
        (key,) = scope.keys or ()
        later = self.keys[self.keys.index(key) + 1 :]
        return [replace(scope, keys=(other,), parts=None) for other in later]

    def _parts_after(self, scope: Scope, part: str) -> list[Scope]:
        """The dependents of the row that is tried that come after this one."""
        later = self._dependents[self._dependents.index(part) + 1 :]
        return [scope.with_parts([other]) for other in later]

    def _refuse(
        self,
        kind: str,
        keys: Sequence[str],
        error: MigrationError,
        rest: Callable[[], Sequence[Scope]],
    ) -> None:
        """One row that is refused alone, unless all are: then the batch fails, by the cause.

        A retry tries the bad rows only: that those are refused again says nothing of the others.
        """
        if self._has_failed:
            self.undo()
        found = self._refusals[kind]
        is_news = not are_rejected(self._context.connection, kind, keys)
        if is_news and found.note(error) and self._refuses_all(found, rest()):
            function = error.function if isinstance(error, BadRow) else ""
            triggers = name_triggers(self._context.connection, function)
            raise Misconfigured(
                f"The database refuses every {kind} of the batch: {error.message}{triggers}"
            )
        self._rejected.append((kind, keys, "rejected", error))

    def _refuses_all(self, found: refusals.Refusals, rest: Sequence[Scope]) -> bool:
        """Try a sample of the rows that are left, and undo it; whether all of it is refused."""
        is_refused = not rest
        for scope in refusals.spread(rest):
            is_part = found.entity != self._step.entity
            try:
                self.run(scope if is_part else scope.with_parts([]), 1)
            except (BadRow, TooBig):
                is_refused = True
            else:
                # To be undone like a failed one: its turn comes later.
                self._has_failed = True
            self.undo()
            if found.any_written:
                return False
        return is_refused

    def quarantine(self) -> bool:
        """Quarantine what was refused, and say whether anything was.

        The database's own words stay out, they may quote data.
        """
        context = self._context
        limit = f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"
        context.connection.exec_driver_sql(self._going_on(limit))
        for entity, keys, reason, error in self._rejected:
            refused = f"The database refuses the row: {error.message}"
            self._step.quarantine(
                context,
                entity,
                keys,
                reason=reason,
                message=OWNER_IS_QUARANTINED if reason == OWNER_QUARANTINED else refused,
            )
        self.statements += len(self._rejected)
        return bool(self._rejected)


def _halves(keys: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    middle = len(keys) // 2
    return keys[:middle], keys[middle:]
