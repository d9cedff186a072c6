"""The data rules a second time, naively: plain loops over whole tables, nothing of the product.

`snapshot` before a run, `expected` from it, and `compare` after the run.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from sqlalchemy import Connection, Text, cast, column, select, table, text

Row = dict[str, str | None]
"""A row with every value as PostgreSQL writes it in text; a column that is missing has no key."""

USER_TYPES = ("student", "teacher", "admin", "developer")
DEFAULT = "(default)"
"""Stands for the organization, department or suite that the migration makes: its id is unknown."""
DEFAULT_SUITE = {"default_tools": [], "preferences": {}, "auto_configuration": True}
TARGETS: dict[str, tuple[str, ...]] = {
    "organizations": ("id",),
    "departments": ("id",),
    "ai_suites": ("id",),
    "ai_tools": ("id",),
    "tool_assignments": ("tool_id", "user_id"),
    "tool_usage_logs": ("id",),
    "marketplace_listings": ("id",),
    "credit_logs": ("id",),
}
"""The target tables and their keys."""
USER_COLUMNS = {
    *("user_type", "billing_tier", "organization_id", "department_id", "credits_balance"),
    *("is_active", "last_login", "preferences"),
}
"""The users' columns that belong to the target."""


@dataclass(frozen=True)
class Names:
    """What the three legacy tables are called, optionally `schema.table`.

    `targets` has target tables of other names, `columns` by legacy table the columns of other
    names, by those that the rules have. `active_gpt` is what a project's column holds.
    """

    users: str = "users"
    subscriptions: str = "gpt_subscriptions"
    projects: str = "projects"
    targets: dict[str, str] = field(default_factory=dict, hash=False)
    columns: dict[str, dict[str, str]] = field(default_factory=dict, hash=False)
    active_gpt: str = "gpt"


@dataclass(frozen=True)
class Snapshot:
    """Every row of the legacy and the target tables at one moment.

    `tables` has the legacy tables as users, subscriptions and projects, whatever they are called.
    `defaults` are the server defaults of the users' columns.
    """

    names: Names = field(default_factory=Names)
    tables: dict[str, list[Row]] = field(default_factory=dict)
    defaults: Row = field(default_factory=dict)
    assigned_by_is_foreign_key: bool = False
    named: dict[str, str] = field(default_factory=dict)
    """What the tools of projects are named after, where it is not what the project holds."""

    def rows(self, name: str) -> list[Row]:
        return self.tables.get(name, [])

    def by_key(self, name: str) -> dict[tuple[str | None, ...], Row]:
        columns = TARGETS.get(name, ("id",))
        return {tuple(row[each] for each in columns): row for row in self.rows(name)}


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


def snapshot(connection: Connection, names: Names) -> Snapshot:
    """Read all the tables; those that do not exist are empty."""
    tables = {
        "users": _read(connection, names.users),
        "subscriptions": _read(connection, names.subscriptions),
        "projects": _read(connection, names.projects),
    }
    for name, columns in names.columns.items():
        for row in tables[name]:
            row.update({rule: row[here] for rule, here in columns.items()})
    tables |= {name: _read(connection, names.targets.get(name, name)) for name in TARGETS}
    is_key = connection.scalar(
        text(
            "SELECT count(*) FROM pg_constraint c JOIN pg_attribute a ON a.attrelid = c.conrelid"
            " AND a.attnum = ANY (c.conkey) WHERE c.contype = 'f'"
            " AND c.conrelid = to_regclass('tool_assignments') AND a.attname = 'assigned_by'"
        )
    )
    return Snapshot(names, tables, _defaults(connection, names.users), bool(is_key))


def _quoted(name: str) -> str:
    return ".".join(f'"{part}"' for part in name.split("."))


def _read(connection: Connection, name: str) -> list[Row]:
    found = connection.scalars(
        text(
            "SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(:name)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        ),
        {"name": _quoted(name)},
    ).all()
    if not found:
        return []
    schema, _, bare = name.rpartition(".")
    columns = [cast(column(each), Text).label(each) for each in found]
    query = select(*columns).select_from(table(bare, schema=schema or None))
    rows = connection.execute(query.order_by(columns[0]))
    return [dict(row) for row in rows.mappings()]


def _defaults(connection: Connection, users: str) -> Row:
    expressions = connection.execute(
        text(
            "SELECT attname::text, 'CAST((' || pg_get_expr(adbin, adrelid) || ') AS '"
            "  || format_type(atttypid, atttypmod) || ')' FROM pg_attrdef JOIN pg_attribute"
            " ON attrelid = adrelid AND attnum = adnum WHERE adrelid = to_regclass(:name)"
            " AND attname = ANY(:columns)"
        ),
        {"name": _quoted(users), "columns": sorted(USER_COLUMNS)},
    ).all()
    return {
        name: connection.exec_driver_sql(f"SELECT ({expression})::text").scalar()
        for name, expression in expressions
    }


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
    tools = {row["id"]: _load(row["configuration"]) for row in now.rows("ai_tools")}
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
        if (row["id"], row["user_id"]) == (held, owner) and not _is_blank(row["gpt_id"]):
            return str(row["gpt_id"])
    key = str(project["id"])
    owners = history.owners.get(key, set()) | {str(owner)}
    owners |= {str(row["user_id"]) for row in before.rows("projects") if row["id"] == key}
    meant = {gpt for whose, gpt in history.gpts.get(held, set()) if whose in owners}
    meant |= {
        str(row["gpt_id"])
        for row in before.rows("subscriptions")
        if row["id"] == held and row["user_id"] in owners and not _is_blank(row["gpt_id"])
    }
    return str(tool["gpt_id"]) if tool["gpt_id"] in meant else held


def expected(before: Snapshot, grants: dict[str, Decimal]) -> Expectation:
    """What one right run makes of a database that was not migrated yet.

    `grants` are credits by user type, with `*` for any other.
    """
    result = Expectation({"users": {}, "subscriptions": {}, "projects": {}})
    suites, logged = _oldest_suites(before), _logged(before)
    for row in before.rows("users"):
        key = str(row["id"])
        if not result.quarantine("users", row, *(["no_email"] if _is_blank(row["email"]) else [])):
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


def _logged(shot: Snapshot) -> dict[str, Decimal]:
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
    if _is_blank(gpt):
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
    if gpt is None or _is_blank(gpt):
        return
    if name:
        gpt = name
    elif (gpt, row["user_id"]) in pointed:
        return
    elif not _is_blank(named := gpts.get((gpt, row["user_id"]))):
        gpt = str(named)
    configuration = {"project_id": key, "gpt_id": gpt}
    result.tools.append(Tool("project", key, str(row["user_id"]), gpt, None, configuration, True))


def _is_blank(value: str | None) -> bool:
    return value is None or not value.strip()


def parse(stored: str | None) -> dict[str, Any]:
    """The JSON object as `jsonb` keeps it; null is an empty one. ValueError for all the rest."""
    value = _load(stored)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _load(stored: str | None) -> object:
    if stored is None:
        return None
    try:
        return json.loads(
            stored,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_refuse,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError("too deep") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _number(digits: str) -> Decimal:
    """A number within the limits of `numeric`: 131072 digits before the point, 16383 behind it."""
    try:
        number = Decimal(digits)
    except InvalidOperation:
        raise ValueError("no number") from None
    exponent = number.as_tuple().exponent
    if (
        not isinstance(exponent, int)
        or exponent < -16383
        or (number and number.adjusted() > 131071)
    ):
        raise ValueError("out of range")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_strings(pairs)
    return dict(pairs)


def _check_strings(value: object) -> None:
    if isinstance(value, str) and any(
        each == "\0" or "\ud800" <= each <= "\udfff" for each in value
    ):
        raise ValueError("a character that jsonb refuses")
    if isinstance(value, list | tuple):
        for each in value:
            _check_strings(each)


def _canonical(value: object) -> str:
    """One text for what `jsonb` holds to be equal: neither order nor trailing zeros count."""
    if isinstance(value, dict):
        pairs = (f"{key!r}: {_canonical(each)}" for key, each in sorted(value.items()))
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(_canonical(each) for each in value)}]"
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
        plain = "".join(map(str, digits[: len(digits) - zeros])).lstrip("0")
        return f"{'-' * sign}{plain}e{int(exponent) + zeros}" if value else "0"
    return repr(value)


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


def compare(connection: Connection, before: Snapshot, result: Expectation) -> list[str]:
    """Every way in which the database differs from the expectation, in words; [] when right."""
    return differences(before, snapshot(connection, before.names), result)


def compare_now(
    connection: Connection,
    before: Snapshot,
    grants: dict[str, Decimal],
    history: History | None = None,
) -> list[str]:
    """As `compare`, where the legacy rows have changed since: with what is expected of them now."""
    after = snapshot(connection, before.names)
    if history and not _cascades(connection, after):
        after = _without(after, history.gone)
    now = refreshed(before, after, history)
    return differences(now, after, expected(now, grants))


def _cascades(connection: Connection, shot: Snapshot) -> bool:
    """Whether a user's suite goes with the user, also when no run is open."""
    query = (
        "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND confdeltype = 'c'"
        " AND conrelid = to_regclass(:suites) AND confrelid = to_regclass(:users)"
    )
    suites = shot.names.targets.get("ai_suites", "ai_suites")
    names = {"suites": _quoted(suites), "users": _quoted(shot.names.users)}
    return bool(connection.scalar(text(query), names))


def _without(shot: Snapshot, gone: set[str]) -> Snapshot:
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


def differences(before: Snapshot, after: Snapshot, result: Expectation) -> list[str]:
    """As `compare`, between two snapshots."""
    comparison = _Comparison(before, after, result)
    comparison.existing_rows()
    comparison.organization()
    comparison.users()
    comparison.suites()
    comparison.tools()
    comparison.assignments()
    comparison.usage_logs()
    comparison.projects()
    comparison.subscriptions()
    comparison.listings()
    comparison.credits()
    return comparison.found


class _Comparison:
    """Collects what differs: the organization before the users, the suites before the tools."""

    def __init__(self, before: Snapshot, after: Snapshot, result: Expectation) -> None:
        self.before, self.after, self.result = before, after, result
        self.found: list[str] = []
        self.defaults: dict[str, str | None] = {}
        self.suite_owners: dict[str, str] = {}
        self.tool_owners: dict[str, str] = {}
        self.tools_by_configuration: dict[str, list[str]] = defaultdict(list)

    def expect(self, what: str, actual: object, wanted: object) -> None:
        if isinstance(actual, str | None) and actual == wanted:
            return
        if _canonical(actual) != _canonical(wanted):
            self.found.append(f"{what}: {_canonical(actual)}, expected {_canonical(wanted)}")

    def expect_same(self, what: str, actual: Counter[str], wanted: Counter[str]) -> None:
        self.found += [f"{what}: missing {each}" for each in (wanted - actual).elements()]
        self.found += [f"{what}: not expected {each}" for each in (actual - wanted).elements()]

    def new(self, name: str) -> list[Row]:
        """The rows of a target table that the run wrote."""
        known = self.before.by_key(name)
        return [row for key, row in self.after.by_key(name).items() if key not in known]

    def unchanged(self, name: str, may_change: set[str]) -> Iterator[tuple[str, Row, Row]]:
        """Each legacy row, then and now, once all its other columns are compared."""
        then, now = self.before.by_key(name), self.after.by_key(name)
        self.expect_same(
            name, Counter(str(*key) for key in now), Counter(str(*key) for key in then)
        )
        for (key,), old in then.items():
            if new := now.get((key,)):
                for each in sorted(old.keys() - may_change):
                    self.expect(f"{name} {key} {each}", new.get(each), old[each])
                yield str(key), old, new

    def existing_rows(self) -> None:
        for name in TARGETS:
            now = self.after.by_key(name)
            for key, old in self.before.by_key(name).items():
                for each, value in old.items():
                    self.expect(f"{name} {key} {each}", now.get(key, {}).get(each), value)

    def organization(self) -> None:
        organizations = [
            row for row in self.after.rows("organizations") if row["name"] == "Default Organization"
        ]
        self.expect("default organizations", len(organizations), 1)
        self.defaults["organization_id"] = organizations[0]["id"] if organizations else None
        departments = [
            row
            for row in self.after.rows("departments")
            if row["name"] == "General"
            and row["organization_id"] == self.defaults["organization_id"]
        ]
        self.expect("default departments", len(departments), 1)
        self.defaults["department_id"] = departments[0]["id"] if departments else None
        for row in self.new("organizations"):
            self.expect("organizations name", row["name"], "Default Organization")
            self.expect("organizations type", row["type"], "education")
            self.expect("organizations subscription_tier", row["subscription_tier"], "free")
            self.expect("organizations settings", _load(row["settings"]), {})
        for row in self.new("departments"):
            self.expect("departments name", row["name"], "General")
            self.expect("departments description", row["description"], "Default department")

    def users(self) -> None:
        for key, old, new in self.unchanged("users", USER_COLUMNS):
            wanted = self.result.users.get(key)
            if wanted is None:
                values = {name: old.get(name) for name in USER_COLUMNS}
            else:
                values = {name: old.get(name) for name in ("last_login", "preferences")} | {
                    "user_type": wanted.user_type,
                    "billing_tier": wanted.billing_tier,
                    "organization_id": self._actual(wanted.organization, "organization_id"),
                    "department_id": self._actual(wanted.department, "department_id"),
                    "is_active": _boolean(wanted.is_active),
                }
            if old.get("preferences") is None:
                del values["preferences"]
            for name, value in values.items():
                self.expect(f"users {key} {name}", new.get(name), value)

    def _actual(self, wanted: str | None, column: str) -> str | None:
        return self.defaults[column] if wanted == DEFAULT else wanted

    def suites(self) -> None:
        new = defaultdict(list)
        for row in self.new("ai_suites"):
            new[row["user_id"]].append(row)
        for key, user in self.result.users.items():
            if user.suite != DEFAULT:
                self.suite_owners[user.suite] = key
                continue
            rows = new.pop(key, [])
            self.expect(f"new suites of user {key}", len(rows), 1)
            for row in rows:
                self.suite_owners[str(row["id"])] = key
                what = f"suite of user {key}"
                self.expect(f"{what}: name", row["name"], user.suite_name)
                self.expect(f"{what}: configuration", _load(row["configuration"]), DEFAULT_SUITE)
                self.expect(f"{what}: is_active", row["is_active"], "true")
        self.found += [f"suites that user {key} must not have: {rows}" for key, rows in new.items()]

    def tools(self) -> None:
        actual = Counter[str]()
        for row in self.new("ai_tools"):
            key, configuration = str(row["id"]), _load(row["configuration"])
            owner = self.suite_owners.get(str(row["suite_id"]), f"nobody (suite {row['suite_id']})")
            self.tool_owners[key] = owner
            self.tools_by_configuration[_canonical(configuration)].append(key)
            described = [owner, row["name"], row["tool_type"], row["version"], configuration]
            described += [row["pricing_tier"], _decimal(row["credits_cost"]), row["is_active"]]
            actual[_canonical(described)] += 1
            if row["requires_approval"] == "true":
                self.found.append(f"ai_tools {key}: requires approval")
        wanted = Counter[str]()
        for tool in self.result.tools:
            described = [tool.owner, tool.name, tool.tool_type, tool.version, tool.configuration]
            described += [tool.pricing_tier, tool.credits_cost, _boolean(tool.is_active)]
            wanted[_canonical(described)] += 1
        self.expect_same("ai_tools", actual, wanted)

    def one_a_tool(self, name: str) -> Iterator[tuple[str, Row]]:
        """The new rows of a table that has one for each new tool, all belonging to its owner."""
        rows = self.new(name)
        tools = Counter(str(row["tool_id"]) for row in rows)
        self.expect_same(name, tools, Counter(list(self.tool_owners)))
        for row in rows:
            what = f"{name} of tool {row['tool_id']}"
            self.expect(f"{what}: user", row["user_id"], self.tool_owners.get(str(row["tool_id"])))
            yield what, row

    def assignments(self) -> None:
        assigned_by = None if self.after.assigned_by_is_foreign_key else "system"
        for what, row in self.one_a_tool("tool_assignments"):
            self.expect(f"{what}: assigned_by", row["assigned_by"], assigned_by)
            self.expect(f"{what}: expires_at", row["expires_at"], None)
            self.expect(f"{what}: permissions", _load(row["permissions"]), {"full_access": True})

    def usage_logs(self) -> None:
        for what, row in self.one_a_tool("tool_usage_logs"):
            self.expect(f"{what}: action", row["action"], "migration")
            self.expect(f"{what}: status", row["status"], "completed")
            self.expect(f"{what}: credits_used", _decimal(row["credits_used"]), Decimal(0))

    def projects(self) -> None:
        with_tool = {tool.key: tool for tool in self.result.tools if tool.kind == "project"}
        for key, old, new in self.unchanged("projects", {"active_gpt_id", "is_template"}):
            is_template = self.result.is_template.get(key)
            wanted = old.get("is_template") if is_template is None else _boolean(is_template)
            self.expect(f"projects {key} is_template", new.get("is_template"), wanted)
            actual = new["active_gpt_id"]
            if tool := with_tool.get(key):
                tools = self.tools_by_configuration[_canonical(tool.configuration)]
                if actual not in tools:
                    self.found.append(
                        f"projects {key} active_gpt_id: {actual!r}, not its tool's id"
                    )
            else:
                self.expect(f"projects {key} active_gpt_id", actual, old["active_gpt_id"])

    def subscriptions(self) -> None:
        for _ in self.unchanged("subscriptions", set()):
            pass

    def listings(self) -> None:
        self.expect("new marketplace_listings", len(self.new("marketplace_listings")), 0)

    def credits(self) -> None:
        reasons = Counter[str]()
        actual = Counter[str]()
        for row in self.new("credit_logs"):
            amounts = [_decimal(row["amount"]), _decimal(row["balance_after"])]
            actual[_canonical([row["user_id"], row["operation"], *amounts])] += bool(amounts[0])
            reasons[_canonical([row["user_id"], row["reason"]])] += 1
            if _is_blank(row["reason"]) or _is_blank(row["run_id"]):
                self.found.append(f"credit_logs {row['id']}: without a reason or a run")
        wanted = Counter(
            _canonical([each.owner, each.operation, each.amount, each.balance_after])
            for each in self.result.credits
        )
        self.expect_same("credit_logs", actual, wanted)
        self.expect_same("credit_logs, reasons of a user", reasons, Counter(list(reasons)))
        sums = _logged(self.after)
        for row in self.after.rows("users"):
            if (key := str(row["id"])) in self.result.users:
                balance = _decimal(row.get("credits_balance"))
                self.expect(f"users {key} credits_balance", balance, self.result.balances[key])
                self.expect(f"sum of the credit_logs of user {key}", sums[key], balance)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _decimal(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)
