"""A way to spoil a migrated database, with all that must be said about it."""

from __future__ import annotations

from dataclasses import dataclass

Difference = tuple[str, str, str, str, str | None]
"""kind, entity, legacy key, target table, detail: a row of migration.differences."""


@dataclass(frozen=True)
class Fault:
    """Statements that spoil a victim's rows, and the differences that follow from nothing else.

    Both name values of the victim: `:user` in a statement, `user` as a difference's key. A victim
    comes from the pool of that name, and no other fault touches it. The `echo` may be said too: a
    row that moved to another user is one too many there, if that user is in another page.
    """

    statements: tuple[str, ...]
    finds: tuple[Difference, ...]
    pool: str = "whole"
    echo: tuple[Difference, ...] = ()


def user(statement: str, *finds: tuple[str, str, str | None], pool: str = "whole") -> Fault:
    """A fault found on the user."""
    return Fault(
        (statement,),
        tuple((kind, "user", "user", table, detail) for kind, table, detail in finds),
        pool,
    )


def on_users(assignment: str, *details: str) -> Fault:
    """Wrong values of the user's own row."""
    finds = [("wrong_value", "users", detail) for detail in details]
    return user(f"UPDATE users SET {assignment} WHERE id = :user", *finds)


def on_suite(assignment: str, detail: str) -> Fault:
    """A wrong value of the suite."""
    return user(
        f"UPDATE ai_suites SET {assignment} WHERE id = :suite", ("wrong_value", "ai_suites", detail)
    )


def on_tool(assignment: str, *details: str, entity: str = "subscription") -> Fault:
    """Wrong values of the tool of a subscription, or of a project."""
    name = "tool" if entity == "subscription" else "project_tool"
    return Fault(
        (f"UPDATE ai_tools SET {assignment} WHERE id = :{name}",),
        tuple(("wrong_value", entity, entity, "ai_tools", detail) for detail in details),
    )


def hanging(table: str, assignment: str, detail: str, entity: str = "subscription") -> Fault:
    """A wrong value of a tool's assignment or usage log."""
    name = "tool" if entity == "subscription" else "project_tool"
    return Fault(
        (f"UPDATE {table} SET {assignment} WHERE tool_id = :{name}",),
        (("wrong_value", entity, entity, table, detail),),
    )


def on_project(assignment: str, detail: str) -> Fault:
    """A wrong value of the project's own row."""
    return Fault(
        (f"UPDATE projects SET {assignment} WHERE id = :project",),
        (("wrong_value", "project", "project", "projects", detail),),
    )


def lost(entity: str, *tables: str) -> Fault:
    """Rows that a subscription or a project must have, deleted."""
    name = "tool" if entity == "subscription" else "project_tool"
    column = {"ai_tools": "id"}
    return Fault(
        tuple(f"DELETE FROM {t} WHERE {column.get(t, 'tool_id')} = :{name}" for t in tables),
        tuple(("missing", entity, entity, table, None) for table in tables),
    )


def quarantine(entity: str, pool: str, *finds: Difference) -> Fault:
    """The quarantine forgets a row."""
    return Fault(
        (f"DELETE FROM migration.quarantine WHERE entity = '{entity}' AND legacy_key = :{entity}",),
        finds,
        pool,
    )
