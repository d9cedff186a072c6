"""This migration, put together: sources, steps in order, schema, and what the engine asks of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from sqlalchemy import Connection

from models.dashboard import legacy
from models.dashboard.checks import fit, grant_types, integer_ids, rejects, trial_rows
from models.dashboard.checks.credit_summary import credits_by_type
from models.dashboard.checks.integrity import INTEGRITY
from models.dashboard.checks.proof import proof
from models.dashboard.checks.waiting import waiting
from models.dashboard.credits import Credits
from models.dashboard.mapping import draft, file
from models.dashboard.organization import Organization
from models.dashboard.projects.apply import Projects
from models.dashboard.projects.replay import ChangedProjects
from models.dashboard.projects.switch import Switch
from models.dashboard.projects.undo import UndoProjects
from models.dashboard.queries import QUERIES
from models.dashboard.repairs import REPAIRS
from models.dashboard.retried import retried
from models.dashboard.schema import SCHEMA
from models.dashboard.scopes import FRAGMENTS
from models.dashboard.sources import SOURCES
from models.dashboard.subscriptions import Orphans
from models.dashboard.undo_rest import undo_rest
from models.dashboard.users.apply import Users
from models.dashboard.users.replay import ChangedUsers
from models.dashboard.users.undo import UndoUsers
from models.engine.checks.answers import Proof, Rule, Summary
from models.engine.migration import Migration
from models.engine.retry import Keys
from models.engine.sample import Sample
from models.engine.schema.shape import Shape
from models.engine.schema.target import Target
from models.engine.source import Sources
from models.engine.step import Context, Counts, Scope
from models.errors import MigrationError
from models.preflight.obstacles import Obstacle
from models.settings import Settings


class Dashboard(Migration):
    """Users, GPT subscriptions and projects, to suites, tools, usage logs and credits."""

    first_stage = "organization"
    replay_stage = "switch"
    amounts = ("credits_granted",)
    reported_tables = ("ai_suites", "ai_tools", "tool_assignments", "tool_usage_logs")
    repairs = REPAIRS
    queries = QUERIES
    integrity = INTEGRITY
    pages_account = True
    checks: ClassVar = {"subscription statuses": rejects.statuses}
    # Measured (docs/scaling.md), and a little more.
    bytes_a_row = 8_000

    def shape(self, settings: Settings) -> Shape:
        return file.load(settings.mapping)

    def advice(self, connection: Connection, settings: Settings) -> str:
        found = [] if settings.mapping else draft.fitting(connection, settings)
        named = " or ".join(f"MIGRATION_MAPPING={name}" for name in found)
        return f"Set {named}: the tables look like it." if found else ""

    def draft_mapping(self, connection: Connection, settings: Settings) -> str:
        return draft.text(connection, settings)

    def fragments_of(self, sources: Sources) -> Mapping[str, str]:
        return FRAGMENTS | legacy.texts(sources)

    def examine_sources(self, sources: Sources) -> Iterator[MigrationError]:
        return legacy.examine(sources)

    def examine_target(
        self, connection: Connection, sources: Sources, found: Target
    ) -> Iterator[MigrationError]:
        return integer_ids.examine(connection, sources, found)

    def misfits(
        self, connection: Connection, sources: Sources, target: Target, settings: Settings
    ) -> list[Obstacle]:
        grants = settings.credit_grants
        return [
            *grant_types.find(connection, sources, target, grants),
            *fit.find(connection, sources, target, grants),
        ]

    def forecast(self, connection: Connection, sources: Sources) -> tuple[dict[str, Rule], str]:
        found, is_exact = rejects.rules(connection, sources)
        unsure = "malformed JSON is found during the run (before it with PostgreSQL 16 or newer)"
        return found, "" if is_exact else unsure

    def sample(self, connection: Connection, sources: Sources) -> Sample:
        return trial_rows.pick(connection, sources)

    def make_up(self, connection: Connection, sources: Sources, rows: Sample) -> None:
        trial_rows.make_up(connection, sources, rows)

    def constants(self, settings: Settings) -> dict[str, str]:
        return {name: str(amount) for name, amount in settings.credit_grants.items()}

    def proof(self, context: Context, entity: str) -> Proof:
        return proof(context, entity)

    def rule(self, context: Context, entity: str) -> Rule:
        return rejects.rule(context, entity)

    def waiting(self, context: Context) -> str:
        return waiting(context)

    def summary(
        self, connection: Connection, sources: Sources, target: Target, run_id: str
    ) -> Summary:
        return credits_by_type(connection, sources, target, run_id)

    def retried(self, context: Context, *, quarantined: bool) -> list[Keys]:
        return retried(context, quarantined=quarantined)

    def undo_rest(self, context: Context, scope: Scope) -> Counts:
        return undo_rest(context, scope)


MIGRATION = Dashboard(
    "dashboard",
    [Organization(), Users(), Orphans(), Projects(), Switch(), Credits()],
    sources=SOURCES,
    undo_steps=[UndoProjects(), UndoUsers()],
    replays=[ChangedUsers(), ChangedProjects()],
    schema=SCHEMA,
)
