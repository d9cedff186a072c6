"""What an application has changed since a run, so that a later run is expected to follow it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, text

from tests.oracle.documents import load
from tests.oracle.rules import is_blank
from tests.oracle.tables import USER_COLUMNS, Row, Snapshot, quoted


@dataclass
class History:
    """What an application wrote beside a run: nothing of it is read from what the run made.

    `held` has by project the GPT that was chosen last, `owners` by project all that it had, and
    `gpts` by subscription every owner with the GPT of that time. `gone` are the users that were
    deleted with all their rows after the last lock, or shortly before it.
    """

    held: Row = field(default_factory=dict)
    owners: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    gpts: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    gone: set[str] = field(default_factory=set)


def refreshed(before: Snapshot, now: Snapshot, history: History | None = None) -> Snapshot:
    """The legacy rows as they are now, over the target as it was before the first run.

    For a migrated database whose legacy data were fixed since: `expected` of the result is what
    a retry, or one more run, ends with. Without a history, a project's tool is taken at its word.
    """
    adopted = {name for row in before.rows("users") for name in row} & USER_COLUMNS
    old = before.by_key("users")
    users = []
    for row in now.rows("users"):
        untouched = {name: value for name, value in row.items() if name not in USER_COLUMNS}
        was = old.get((row["id"],), before.defaults)
        users.append(untouched | {name: was.get(name) for name in adopted})
    projects, named = _projects_before(before, now, history)
    legacy = {"users": users, "projects": projects, "subscriptions": now.rows("subscriptions")}
    return Snapshot(before.names, before.tables | legacy, before.defaults, named=named)


def _projects_before(
    before: Snapshot, now: Snapshot, history: History | None
) -> tuple[list[Row], dict[str, str]]:
    """The projects as the application left them, and what their tools are named after."""
    tools = {row["id"]: load(row["configuration"]) for row in now.rows("ai_tools")}
    projects, named, first = [], {}, before.by_key("projects")
    for row in now.rows("projects"):
        key, tool = str(row["id"]), tools.get(row["active_gpt_id"])
        held, was = row["active_gpt_id"], first.get((key,))
        if isinstance(tool, dict) and tool.get("project_id") == key:
            is_key = was and before.names.active_gpt == "subscription"
            held = was["active_gpt_id"] if was and is_key else tool["gpt_id"]
            if history:
                held = _held(history, row, was)
                named[key] = _name(before, now, history, row | {"active_gpt_id": held}, tool)
        elif history:
            held = _held(history, row, was)
        projects.append(row | {"active_gpt_id": held})
    return projects, named


def _held(history: History, project: Row, was: Row | None) -> str | None:
    """What the application put there last."""
    return history.held.get(str(project["id"]), (was or project)["active_gpt_id"])


def _name(
    before: Snapshot, now: Snapshot, history: History, project: Row, tool: dict[str, Any]
) -> str:
    """What the tool of this project is named after: what the project holds means now.

    The key of a subscription that its owner has no longer means one of the GPTs that it stood for,
    or nothing: then it is taken as it is.
    """
    held, owner = str(project["active_gpt_id"]), project["user_id"]
    if before.names.active_gpt != "subscription":
        return held
    for row in now.rows("subscriptions"):
        if (row["id"], row["user_id"]) == (held, owner) and not is_blank(row["gpt_id"]):
            return str(row["gpt_id"])
    key = str(project["id"])
    owners = history.owners.get(key, set()) | {str(owner)}
    owners |= {str(row["user_id"]) for row in before.rows("projects") if row["id"] == key}
    meant = {gpt for whose, gpt in history.gpts.get(held, set()) if whose in owners}
    meant |= {
        str(row["gpt_id"])
        for row in before.rows("subscriptions")
        if row["id"] == held and row["user_id"] in owners and not is_blank(row["gpt_id"])
    }
    return str(tool["gpt_id"]) if tool["gpt_id"] in meant else held


def cascades(connection: Connection, shot: Snapshot) -> bool:
    """Whether a user's suite goes with the user, also when no run is open."""
    query = (
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confdeltype = 'c'"
        " AND conrelid = to_regclass(:suites) AND confrelid = to_regclass(:users)"
    )
    suites = shot.names.targets.get("ai_suites", "ai_suites")
    names = {"suites": quoted(suites), "users": quoted(shot.names.users)}
    return bool(connection.scalar(text(query), names))


def without(shot: Snapshot, gone: set[str]) -> Snapshot:
    """Less what adopted tables keep of users who were deleted after a run."""
    owners = gone - {str(row["id"]) for row in shot.rows("users")}
    suites = {row["id"] for row in shot.rows("ai_suites") if row["user_id"] in owners}
    tools = {row["id"] for row in shot.rows("ai_tools") if row["suite_id"] in suites}
    left = {"ai_suites": ("id", suites), "ai_tools": ("id", tools)}
    left |= {name: ("tool_id", tools) for name in ("tool_assignments", "tool_usage_logs")}
    left["credit_logs"] = ("user_id", owners)
    kept = {
        name: [row for row in shot.rows(name) if row[key] not in keys]
        for name, (key, keys) in left.items()
    }
    return replace(shot, tables=shot.tables | kept)
