"""What a migration is: its sources, its steps in their order, and what the engine puts around them.

An author's steps come in the order of the list. The engine adds its own: indexes and capture before
the first row is read, the replay of what the application changed after the last page, the
verification, and the finish with the cutover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import sqlalchemy as sa
from sqlalchemy import Connection

from models.engine import current, retry
from models.engine.authored import Authored, UndoOf
from models.engine.checks import expects, source_tables
from models.engine.checks.accounting import Accounting, Totals
from models.engine.checks.answers import Proof, Rule, Summary
from models.engine.checks.judgement import LateRemoved, Removed
from models.engine.declarations import require_declared
from models.engine.live import replay
from models.engine.live.capture import Capture, Release
from models.engine.live.cutover import LastRemoved, Settle, SettleAgain
from models.engine.live.replay import Replay, ReplayOf, late
from models.engine.repair import Repair
from models.engine.rollback import Loosen, Tidy, UndoRest
from models.engine.sample import Sample, pick
from models.engine.schema import target
from models.engine.schema.constraints import Contract, Keys
from models.engine.schema.declaration import Schema
from models.engine.schema.indexes import EarlyIndexes, TargetIndexes
from models.engine.schema.shape import Shape
from models.engine.schema.target import Target
from models.engine.source import Source, Sources
from models.engine.step import CONTROL, VERIFY, Context, Counts, Scope, Step, add
from models.errors import MigrationError, Misconfigured
from models.ledger.tables import FINISH, RECONCILIATION, VERIFICATION
from models.preflight.obstacles import Obstacle
from models.reports.checks import Check
from models.reports.taken import TAKEN
from models.settings import Settings


class Migration:
    """A migration, named by the setting MIGRATION. Subclasses may override the hooks."""

    # The stage before the first page, and the one that replays what the application changed.
    first_stage: ClassVar[str] = "prepare"
    replay_stage: ClassVar[str] = "replay"
    # Counts of `apply` that are sums of money, kept as decimal text.
    amounts: ClassVar[tuple[str, ...]] = ()
    # SQL that statements may name as {placeholder}; may hold names of tables itself.
    fragments: ClassVar[Mapping[str, str]] = {}
    # The written tables that reports name, all of them where this is empty.
    reported_tables: ClassVar[tuple[str, ...]] = ()
    # Fixes for `producer repair`, and checks of its rows for `producer check`, by name.
    repairs: ClassVar[Mapping[str, Repair]] = {}
    checks: ClassVar[Mapping[str, Callable[[Connection, Sources], Check]]] = {}
    # What the application asks the new tables of the first source's row :key, by name.
    queries: ClassVar[Mapping[str, str]] = {}
    # Rows that break a rule, also the application's: a query that lists their keys, by the rule.
    integrity: ClassVar[Mapping[str, str]] = {}
    # The verification of a page finds each of its rows that is neither migrated nor quarantined, so
    # that the accounting may take the pages' counts.
    pages_account: ClassVar[bool] = False
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
        schema: Schema | sa.MetaData | None = None,
    ) -> None:
        self.name = name
        self.authored = tuple(steps)
        of_steps = [step.source for step in steps if step.source is not None]
        # A step may know more of its source than a list does.
        declared = {source.entity: source for source in sources}
        self.sources = tuple((declared | {each.entity: each for each in of_steps}).values())
        self.schema = self._complete(schema)
        undone = [each for each in steps if isinstance(each, Authored) and each.has_undo]
        derived = [UndoOf(each) for each in reversed(undone)]
        for each in derived:
            each.step.undone_by = each.name
        self.undo_steps: list[Step] = [Loosen(), *undo_steps, *derived, UndoRest(), Tidy()]
        self.replays = tuple(replays) or tuple(self._derive_replays())
        self.steps = self._arrange()

    def _complete(self, schema: Schema | sa.MetaData | None) -> Schema:
        """The schema, with the tables that steps write and nobody declares as adopted ones."""
        if isinstance(schema, sa.MetaData):
            schema = Schema.of(schema, self.sources)
        schema = schema or Schema()
        known = {*schema.tables, *(source.plural for source in self.sources)}
        written = [
            name
            for step in self.authored
            if isinstance(step, Authored)
            for name in (*step.written, *(expect.table for expect in step.expects))
        ]
        adopted = tuple(name for name in dict.fromkeys(written) if name not in known)
        return replace(schema, adopted=adopted)

    def _derive_replays(self) -> Iterator[Replay]:
        parents = {each.parent for each in self.sources}
        for each in self.sources:
            steps = [s for s in self.authored if s.source and s.source.entity == each.entity]
            if steps or each.entity in parents:
                replay = ReplayOf(each, steps)
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
            *of_stage[VERIFICATION],
            Accounting(),
            *of_stage[RECONCILIATION],
            *(late(replay) for replay in self.replays),
            *of_stage[FINISH],
            Keys(),
            Settle(),
            LateRemoved(),
            Contract(),
            SettleAgain(),
            LastRemoved(),
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
        self._require_free_names()
        require_declared(self.steps, self.undo_steps)

    def _require_free_names(self) -> None:
        """Raise Misconfigured where a word of this migration would hide another one in reports."""
        words = [*(source.plural for source in self.sources), *self.amounts]
        for word in words:
            if word in TAKEN or words.count(word) > 1:
                raise Misconfigured(
                    f"The migration {self.name} calls something {word}, and reports have that word"
                    " for something else",
                    hint="Choose another one, for a source: Source('stage', plural='all_stages',"
                    " table='stages').",
                )

    # The steps and their stages.

    def step(self, name: str) -> Step:
        """The step of that name; raises KeyError."""
        return {step.name: step for step in (*self.steps, *self.undo_steps)}[name]

    @property
    def stages(self) -> dict[str, int]:
        """All stages in order, with their positions: verification and reconciliation share one."""
        names = dict.fromkeys(step.stage for step in self.steps)
        in_turn = [name for name in names if name != RECONCILIATION]
        return {n: in_turn.index(VERIFICATION if n == RECONCILIATION else n) for n in names}

    @property
    def undo_stages(self) -> dict[str, int]:
        """The stages of a rollback in order, with their positions, which begin at 1,000.

        Workers of version 0.1 tell them from other stages by that alone, and must not take a
        rollback for one that is over.
        """
        names = dict.fromkeys(step.stage for step in self.undo_steps)
        return {name: position for position, name in enumerate(names, 1000)}

    def steps_of(self, stage: str) -> list[Step]:
        """The steps of a stage in order; the verification repeats each step that is verified."""
        if stage == VERIFICATION:
            repeated = [s for s in self.steps if s.is_verified and s.stage != RECONCILIATION]
            return [*repeated, *(step for step in self.steps if step.stage == VERIFICATION)]
        return [step for step in (*self.steps, *self.undo_steps) if step.stage == stage]

    @property
    def counted_twice(self) -> list[str]:
        """The steps whose rows are not counted: another step of the stage goes through them."""
        return [step.name for step in self.authored if not step.is_counted]

    @property
    def queues(self) -> list[str]:
        """The queues of all steps, with those of the verification and of the engine itself."""
        names = dict.fromkeys(step.queue for step in self.authored if step.queue != CONTROL)
        return [*names, *(name for name in (VERIFY, CONTROL) if name not in names)]

    @property
    def counted(self) -> list[str]:
        """The entities that a step migrates, in order: the others are parents only."""
        return [s.entity for s in self.sources if any(x.entity == s.entity for x in self.authored)]

    @property
    def first(self) -> str:
        """The entity that the figures of a run are named after: the first that is migrated."""
        return (self.counted or [self.sources[0].entity])[0]

    @property
    def reconciled(self) -> str:
        """The entity whose rows the reconciliation counts."""
        named = (s.entity for s in self.authored if s.stage == RECONCILIATION and s.entity)
        return next(named, self.first)

    @property
    def checked(self) -> str:
        """The name of that count, in the ledger and in JSON: `badges_checked`."""
        return f"{self.plural(self.reconciled)}_checked"

    @property
    def written(self) -> tuple[str, ...]:
        """The target tables that a run writes, by name."""
        return (*self.schema.tables, *self.schema.adopted)

    @property
    def reported(self) -> tuple[str, ...]:
        """The written tables that reports name."""
        return self.reported_tables or self.written

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
        shape = self.shape(settings)
        shape = shape.of_copies() if settings.copies else shape
        names = current.table_names(settings)
        beside = target.names(self.schema, shape)
        found, errors = source_tables.examine(connection, self.sources, names, shape, beside)
        if found is None:
            return None, errors
        found = target.with_ids(connection, self.schema, found)
        return found, [*errors, *self.examine_sources(found)]

    # Hooks.

    def shape(self, settings: Settings) -> Shape:
        """How this database differs from what is declared; OtherTables where it is not known."""
        return Shape()

    def advice(self, connection: Connection, settings: Settings) -> str:
        """A sentence for the hint of whatever is in the way: a mapping that would fix it."""
        return ""

    def draft_mapping(self, connection: Connection, settings: Settings) -> str:
        """A first mapping file for the tables that are there; "" where there are no mappings."""
        return ""

    def fragments_of(self, sources: Sources) -> Mapping[str, str]:
        """The fragments for the sources as found."""
        return self.fragments

    def examine_sources(self, sources: Sources) -> Iterator[MigrationError]:
        """What the engine does not know to be wrong with the source tables."""
        return iter(())

    def examine_target(
        self, connection: Connection, sources: Sources, found: Target
    ) -> Iterator[MigrationError]:
        """What the engine does not know to be wrong with the target tables that are there."""
        return iter(())

    def misfits(
        self, connection: Connection, sources: Sources, target: Target, settings: Settings
    ) -> list[Obstacle]:
        """Columns that values of the sources do not fit, asked where one is narrower."""
        return []

    def forecast(self, connection: Connection, sources: Sources) -> tuple[dict[str, Rule], str]:
        """Which rows a run will quarantine, by entity; and what cannot be told before the run.

        The rules may bind :blanks, the white space that texts are trimmed of.
        """
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
        joins, conditions = [], []
        for number, step in enumerate(self._of(entity)):
            table = context.sources[entity]
            found = list(expects.joins(context, table, step.expects, f"x{number}_"))
            joins += [join for join, _ in found]
            there = [f"coalesce({column}, true)" for _, column in found]
            if step.accepts:
                accepted = expects.fill(context, step.accepts, table)
                there.append(f"(SELECT ({accepted}) IS TRUE FROM (SELECT t.*) AS s)")
            else:
                there.append(" OR ".join(f"{column} IS NOT NULL" for _, column in found))
            conditions += [f"({each})" for each in there]
        return Proof("\n".join(joins), " AND ".join(conditions) or "true")

    def rule(self, context: Context, entity: str) -> Rule:
        """Why a row of the entity is bad: the verification judges the quarantine with it."""
        table = context.sources[entity]
        good = [
            expects.good(context, table, step.expects, step.accepts) for step in self._of(entity)
        ]
        bad = f"CASE WHEN NOT ({' AND '.join(good) or 'true'}) THEN 'bad' END"
        return Rule(f"{table.sql} s", "s", bad)

    def _of(self, entity: str) -> list[Authored]:
        return [s for s in self.authored if isinstance(s, Authored) and s.entity == entity]

    def waiting(self, context: Context) -> str:
        """SQL for what differs only because a change is not replayed yet, of the rows `found`.

        Columns: entity, legacy_key, target_table.
        """
        return replay.waiting(context.sources)

    def whole(self, context: Context) -> list[str]:
        """Statements over whole tables that select differences, run once after all pages."""
        steps = [step for step in self.authored if isinstance(step, Authored)]
        return [statement for step in steps for statement in step.whole(context)]

    def summary(
        self, connection: Connection, sources: Sources, target: Target, run_id: str
    ) -> Summary | None:
        """A table of the migration's own for the report of a run; None for none."""
        return None

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
        counts: Counts = {}
        for step in reversed(self.authored):
            if isinstance(step, Authored) and step.has_undo:
                counts = add(counts, step.undo(context, None))
        return counts
