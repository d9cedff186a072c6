"""The data rules, naively: plain loops over whole tables, nothing of the product."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from tests.oracle.documents import parse
from tests.oracle.tables import Row, Snapshot

USER_TYPES = ("student", "teacher", "admin", "developer")
DEFAULT = "(default)"
"""Stands for the organization, department or suite that the migration makes: its id is unknown."""


@dataclass(frozen=True)
class User:
    """A migrated user: `suite`, `organization` and `department` are ids, or DEFAULT."""

    user_type: str
    billing_tier: str
    organization: str
    department: str | None
    is_active: bool
    suite: str
    suite_name: str


@dataclass(frozen=True)
class Tool:
    """The tool of one legacy row; `kind` is subscription or project, `key` that row's id."""

    kind: str
    key: str
    owner: str
    name: str
    version: str | None
    configuration: dict[str, Any]
    is_active: bool
    tool_type: str = "gpt"
    pricing_tier: str = "free"
    credits_cost: Decimal = Decimal(0)


@dataclass(frozen=True)
class Credit:
    """A row that the migration adds to a user's credit log; `amount` is never negative."""

    owner: str
    operation: str
    amount: Decimal
    balance_after: Decimal


@dataclass
class Expectation:
    """What a right run ends with.

    `quarantined` has, by legacy table and key, every class of reason that holds for the row: a
    run may report any one of them. `is_template` has every migrated project.
    """

    quarantined: dict[str, dict[str, frozenset[str]]]
    users: dict[str, User] = field(default_factory=dict)
    tools: list[Tool] = field(default_factory=list)
    is_template: dict[str, bool] = field(default_factory=dict)
    credits: list[Credit] = field(default_factory=list)
    balances: dict[str, Decimal] = field(default_factory=dict)
    granted: Decimal = Decimal(0)

    def quarantine(self, name: str, row: Row, *reasons: str) -> bool:
        """Note the row when there is a reason to; says whether there was."""
        if reasons:
            self.quarantined[name][str(row["id"])] = frozenset(reasons)
        return bool(reasons)


def expected(before: Snapshot, grants: dict[str, Decimal]) -> Expectation:
    """What one right run makes of a database that was not migrated yet.

    `grants` are credits by user type, with `*` for any other.
    """
    result = Expectation({"users": {}, "subscriptions": {}, "projects": {}})
    suites, logged = _oldest_suites(before), sums_of_logs(before)
    for row in before.rows("users"):
        key = str(row["id"])
        if not result.quarantine("users", row, *(["no_email"] if is_blank(row["email"]) else [])):
            result.users[key] = _user(row, suites.get(key), before.defaults)
            _expect_credits(result, row, logged.get(key, Decimal(0)), grants)
    for row in before.rows("subscriptions"):
        _expect_subscription(result, row)
    pointed = _tools_at_hand(before)
    gpts = {}
    if before.names.active_gpt == "subscription":
        subscriptions = before.rows("subscriptions")
        gpts = {(row["id"], row["user_id"]): row["gpt_id"] for row in subscriptions}
    for row in before.rows("projects"):
        if not result.quarantine("projects", row, *_owner_reasons(result, row)):
            _expect_project(result, row, pointed, gpts, before.named.get(str(row["id"])))
    return result


def _oldest_suites(before: Snapshot) -> dict[str, str]:
    """The suite that each user keeps, by user."""
    suites = before.rows("ai_suites")
    ordered = sorted(suites, key=lambda row: (row["created_at"] or "infinity", row["id"] or ""))
    return {str(row["user_id"]): str(row["id"]) for row in reversed(ordered)}


def sums_of_logs(shot: Snapshot) -> dict[str, Decimal]:
    """What the credit logs add up to, by user."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row in shot.rows("credit_logs"):
        sign = -1 if row["operation"] == "deduct" else 1
        sums[str(row["user_id"])] += sign * Decimal(row["amount"] or 0)
    return sums


def _user(row: Row, suite: str | None, defaults: Row) -> User:
    def held(name: str) -> str | None:
        value = row.get(name)
        return None if suite is None and value == defaults.get(name) else value

    role = (row.get("role") or "").strip().lower()
    return User(
        user_type=held("user_type") or (role if role in USER_TYPES else "student"),
        billing_tier=held("billing_tier") or "free",
        organization=held("organization_id") or DEFAULT,
        department=held("department_id") or (None if held("organization_id") else DEFAULT),
        is_active=held("is_active") != "false",
        suite=suite or DEFAULT,
        suite_name=f"{row['email']}'s Suite",
    )


def _expect_credits(
    result: Expectation, row: Row, logged: Decimal, grants: dict[str, Decimal]
) -> None:
    key, balance = str(row["id"]), Decimal(row.get("credits_balance") or 0)
    opening = balance - logged
    if opening:
        operation = "add" if opening > 0 else "deduct"
        result.credits.append(Credit(key, operation, abs(opening), balance))
    grant = grants.get(result.users[key].user_type, grants["*"])
    if grant:
        result.credits.append(Credit(key, "add", grant, balance + grant))
    result.granted += grant
    result.balances[key] = balance + grant


def _owner_reasons(result: Expectation, row: Row) -> list[str]:
    owner = str(row["user_id"])
    if owner in result.quarantined["users"]:
        return ["owner_quarantined"]
    return [] if owner in result.users else ["owner_missing"]


def _expect_subscription(result: Expectation, row: Row) -> None:
    reasons = _owner_reasons(result, row)
    gpt = row["gpt_id"]
    if is_blank(gpt):
        reasons.append("no_gpt_id")
    try:
        preferences = parse(row.get("preferences"))
    except ValueError:
        reasons.append("bad_preferences")
    if result.quarantine("subscriptions", row, *reasons):
        return
    status = (row.get("status", "active") or "").strip().lower()
    is_active = status == "active" and row.get("is_active") != "false"
    key, owner, version = str(row["id"]), str(row["user_id"]), row.get("version")
    result.tools.append(Tool("subscription", key, owner, str(gpt), version, preferences, is_active))


def _tools_at_hand(before: Snapshot) -> set[tuple[str | None, str | None]]:
    """Each tool with whom it is for: the owner of its suite, and those it is assigned to."""
    suites = {row["id"]: row["user_id"] for row in before.rows("ai_suites")}
    owned = {(row["id"], suites.get(row.get("suite_id"))) for row in before.rows("ai_tools")}
    return owned | {(row["tool_id"], row["user_id"]) for row in before.rows("tool_assignments")}


def _expect_project(
    result: Expectation,
    row: Row,
    pointed: set[tuple[str | None, str | None]],
    gpts: dict[tuple[str | None, str | None], str | None],
    name: str | None,
) -> None:
    key, gpt = str(row["id"]), row["active_gpt_id"]
    result.is_template[key] = row.get("is_template") == "true"
    if gpt is None or is_blank(gpt):
        return
    if name:
        gpt = name
    elif (gpt, row["user_id"]) in pointed:
        return
    elif not is_blank(named := gpts.get((gpt, row["user_id"]))):
        gpt = str(named)
    configuration = {"project_id": key, "gpt_id": gpt}
    result.tools.append(Tool("project", key, str(row["user_id"]), gpt, None, configuration, True))


def is_blank(value: str | None) -> bool:
    return value is None or not value.strip()


def counts(before: Snapshot, result: Expectation) -> dict[str, Any]:
    """The figures that a run reports at its end."""
    figures: dict[str, Any] = {}
    for name, rejected in result.quarantined.items():
        total = len(before.rows(name))
        figures[name] = {
            "total": total,
            "migrated": total - len(rejected),
            "quarantined": len(rejected),
        }
    figures["projects"]["with_active_gpt"] = sum(tool.kind == "project" for tool in result.tools)
    figures["user_types"] = dict(Counter(user.user_type for user in result.users.values()))
    rows = dict.fromkeys(("ai_tools", "tool_assignments", "tool_usage_logs"), len(result.tools))
    rows["ai_suites"] = sum(user.suite == DEFAULT for user in result.users.values())
    figures["rows"] = rows | {"organizations": 1, "departments": 1, "marketplace_listings": 0}
    return figures | {"credits_granted": f"{result.granted:.2f}"}
