"""What a migration is: its sources, its steps in their order, and what the engine puts around them.

An author's steps come in the order of the list. The engine adds its own: indexes and capture before
the first row is read, the replay of what the application changed after the last page, the
verification, and the finish with the cutover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import Connection

from models.engine import current, retry, source
from models.engine.accounting import Accounting, Totals
from models.engine.capture import Capture, Release
from models.engine.constraints import Contract, Keys
from models.engine.cutover import Settle
from models.engine.declarations import require_declared
from models.engine.indexes import EarlyIndexes, TargetIndexes
from models.engine.judgement import LateRemoved, Removed
from models.engine.repair import Repair
from models.engine.replay import Replay, ReplayOf, late
from models.engine.rollback import Loosen, Tidy, UndoRest
from models.engine.sample import Sample, pick
from models.engine.schema import Schema
from models.engine.source import Source, Sources
from models.engine.step import CONTROL, VERIFY, Context, Counts, Scope, Step
from models.engine.target import Target
from models.errors import MigrationError, Misconfigured
from models.ledger.tables import FINISH, RECONCILIATION, VERIFICATION
from models.messages import Check
from models.preflight.obstacles import Obstacle
from models.settings import Settings


@dataclass(frozen=True)
class Proof:
    """SQL that tells whether a source row `t` is migrated, for the accounting over whole tables.

    `joins` follow `FROM source t`, each with at most one row; `is_migrated` is a condition.
    """

    joins: str
    is_migrated: str


@dataclass(frozen=True)
class Rule:
    """Why a source row is bad, said a second time, in words that no worker uses.

    `rows` is a FROM item with the source row as `alias`; `reason` is SQL, null for a good row.
    """

    rows: str
    alias: str
    reason: str


class Migration:
    """A migration, named by the setting MIGRATION. Subclasses may override the hooks."""

    # The stage before the first page, and the one that replays what the application changed.
    first_stage: ClassVar[str] = "prepare"
    replay_stage: ClassVar[str] = "replay"
    # Counts of `apply` that are sums of money, kept as decimal text.
    amounts: ClassVar[tuple[str, ...]] = ()
    # SQL that statements may name as {placeholder}; may hold names of tables itself.
    fragments: ClassVar[Mapping[str, str]] = {}

    # Fixes for `producer repair`, and checks of its rows for `producer check`, by name.
    repairs: ClassVar[Mapping[str, Repair]] = {}
    checks: ClassVar[Mapping[str, Callable[[Connection, Sources], Check]]] = {}
    # What a row of the first source and its children become, with indexes, in bytes.
    bytes_a_row: ClassVar[int] = 2_000

    def __init__(
        self,
        name: str,
        steps: Sequence[Step],
        *,
        sources: Sequence[Source] = (),
        undo_steps: Sequence[Step] = (),
        replays: Sequence[Replay] = (),
        schema: Schema | None = None,
    ) -> None:
        self.name = name
        self.authored = tuple(steps)
        declared = [step.source for step in steps if step.source is not None]
        self.sources = tuple(sources) or tuple(dict.fromkeys(declared))
        self.schema = schema or Schema()
        self.replays = tuple(replays) or tuple(self._derive_replays())
        self.undo_steps: list[Step] = [Loosen(), *undo_steps, UndoRest(), Tidy()]
        self.steps = self._arrange()

    def _derive_replays(self) -> Iterator[Replay]:
        for each in self.sources:
            steps = [step for step in self.authored if step.source == each]
            if steps:
                replay = ReplayOf(steps)
                replay.stage = self.replay_stage
                yield replay

    def _arrange(self) -> list[Step]:
        """All steps in order: the author's, with the engine's around them."""
        first, replayed = self.first_stage, self.replay_stage
        fixed = (first, replayed, VERIFICATION, RECONCILIATION, FINISH)
        of_stage = {
            stage: [step for step in self.authored if step.stage == stage] for stage in fixed
        }
        paged = [step for step in self.authored if step.stage not in fixed]
        last = paged[-1].stage if paged else first
        found: list[Step] = [
            EarlyIndexes().at(first),
            *of_stage[first],
            Capture().at(first),
            *paged,
            TargetIndexes().at(last),
            *of_stage[replayed],
            *self.replays,
            Removed().at(replayed),
            *of_stage[RECONCILIATION],
            *of_stage[VERIFICATION],
            Accounting(),
            *(late(replay) for replay in self.replays),
            *of_stage[FINISH],
            Keys(),
            Settle(),
            LateRemoved(),
            Contract(),
            Totals(),
            Release(),
        ]
        return found

    def require_declared(self) -> None:
        """Raise Misconfigured for the first step that leaves something out; says what to write."""
        names = [step.name for step in (*self.steps, *self.undo_steps)]
        for name in names:
            if names.count(name) > 1:
                raise Misconfigured(
                    f"The migration {self.name} has two steps named {name}",
                    hint="Give one of them another name.",
                )
        require_declared(self.steps, self.undo_steps)

    # The steps and their stages.

    def step(self, name: str) -> Step:
        """The step of that name; raises KeyError."""
        return {step.name: step for step in (*self.steps, *self.undo_steps)}[name]

    @property
    def stages(self) -> list[str]:
        """All stages in order: those of the steps, with verification before reconciliation."""
        names = list(dict.fromkeys(step.stage for step in self.steps if step.stage != VERIFICATION))
        after = RECONCILIATION if RECONCILIATION in names else FINISH
        names.insert(names.index(after), VERIFICATION)
        return names

    @property
    def undo_stages(self) -> list[str]:
        """The stages of a rollback in order."""
        return list(dict.fromkeys(step.stage for step in self.undo_steps))

    def steps_of(self, stage: str) -> list[Step]:
        """The steps of a stage in order; the verification repeats each step that is verified."""
        if stage == VERIFICATION:
            repeated = [s for s in self.steps if s.is_verified and s.stage != RECONCILIATION]
            return [*repeated, *(step for step in self.steps if step.stage == VERIFICATION)]
        return [step for step in (*self.steps, *self.undo_steps) if step.stage == stage]

    def stages_before(self, name: str) -> list[str]:
        """The stages that must be closed before this one opens, nearest last."""
        names = self.undo_stages if name in self.undo_stages else self.stages
        before = names[: names.index(name)]
        return [stage for stage in before if not (name == RECONCILIATION and stage == VERIFICATION)]

    @property
    def queues(self) -> list[str]:
        """The queues of all steps, with those of the verification and of the engine itself."""
        names = dict.fromkeys(step.queue for step in self.authored if step.queue != CONTROL)
        return [*names, *(name for name in (VERIFY, CONTROL) if name not in names)]

    def plural(self, entity: str) -> str:
        """The word for many rows of an entity."""
        return next((s.plural for s in self.sources if s.entity == entity), f"{entity}s")

    # The tables as found.

    def read(self, connection: Connection, settings: Settings) -> Sources:
        """The source tables as found; raises the first error that `examine` names."""
        found, errors = self.examine(connection, settings)
        if errors:
            raise errors[0]
        assert found is not None
        return found

    def examine(
        self, connection: Connection, settings: Settings
    ) -> tuple[Sources | None, list[MigrationError]]:
        """The source tables, where all are there, and all that this migration cannot work with."""
        found, errors = source.examine(connection, self.sources, current.table_names(settings))
        return found, errors if found is None else [*errors, *self.examine_sources(found)]

    # Hooks.

    def examine_sources(self, sources: Sources) -> Iterator[MigrationError]:
        """What the engine does not know to be wrong with the source tables."""
        return iter(())

    def misfits(
        self, connection: Connection, sources: Sources, target: Target, settings: Settings
    ) -> list[Obstacle]:
        """Columns that values of the sources do not fit, asked where one is narrower."""
        return []

    def forecast(self, connection: Connection, sources: Sources) -> tuple[dict[str, int], str]:
        """Rows that will be set aside, by reason; and what cannot be told before the run."""
        return {}, "this migration does not forecast it"

    def sample(self, connection: Connection, sources: Sources) -> Sample:
        """Real rows for a trial: of each kind that there is, a few."""
        return pick(connection, sources)

    def make_up(self, connection: Connection, sources: Sources, rows: Sample) -> None:
        """Insert good rows that nobody has; adds their keys to `rows`, or says why not there."""

    def constants(self, settings: Settings) -> dict[str, str]:
        """Values that a run keeps from its start to its end; steps find them in the context."""
        return {}

    def proof(self, context: Context, entity: str) -> Proof:
        """How the accounting tells that a row is migrated, by rows of the target alone."""
        raise NotImplementedError

    def rule(self, context: Context, entity: str) -> Rule:
        """Why a row of the entity is bad: the verification judges the quarantine with it."""
        raise NotImplementedError

    def waiting(self, context: Context) -> str:
        """SQL for what differs only because a change is not replayed yet, of the rows `found`.

        Columns: entity, legacy_key, target_table.
        """
        raise NotImplementedError

    def retried(self, context: Context, *, quarantined: bool) -> list[retry.Keys]:
        """The keys that a retry gives to each step."""
        found = []
        for step in self.authored:
            table = step.table(context)
            if table is not None and step.writes_rows:
                found.append(retry.of_step(context, step, table, quarantined=quarantined))
        return found

    def undo_rest(self, context: Context, scope: Scope) -> Counts:
        """Undo what no page reaches, at the end of a rollback."""
        return {}
