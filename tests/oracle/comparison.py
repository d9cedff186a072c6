"""Every way in which a database differs from what the rules expect."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from decimal import Decimal

from sqlalchemy import Connection

from tests.oracle.documents import canonical, load
from tests.oracle.rules import DEFAULT, Expectation, expected, is_blank, sums_of_logs
from tests.oracle.since import History, cascades, refreshed, without
from tests.oracle.tables import TARGETS, USER_COLUMNS, Row, Snapshot, snapshot

DEFAULT_SUITE = {"default_tools": [], "preferences": {}, "auto_configuration": True}


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
    if history and not cascades(connection, after):
        after = without(after, history.gone)
    now = refreshed(before, after, history)
    return differences(now, after, expected(now, grants))


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
        if canonical(actual) != canonical(wanted):
            self.found.append(f"{what}: {canonical(actual)}, expected {canonical(wanted)}")

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
            self.expect("organizations settings", load(row["settings"]), {})
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
                self.expect(f"{what}: configuration", load(row["configuration"]), DEFAULT_SUITE)
                self.expect(f"{what}: is_active", row["is_active"], "true")
        self.found += [f"suites that user {key} must not have: {rows}" for key, rows in new.items()]

    def tools(self) -> None:
        actual = Counter[str]()
        for row in self.new("ai_tools"):
            key, configuration = str(row["id"]), load(row["configuration"])
            owner = self.suite_owners.get(str(row["suite_id"]), f"nobody (suite {row['suite_id']})")
            self.tool_owners[key] = owner
            self.tools_by_configuration[canonical(configuration)].append(key)
            described = [owner, row["name"], row["tool_type"], row["version"], configuration]
            described += [row["pricing_tier"], _decimal(row["credits_cost"]), row["is_active"]]
            actual[canonical(described)] += 1
            if row["requires_approval"] == "true":
                self.found.append(f"ai_tools {key}: requires approval")
        wanted = Counter[str]()
        for tool in self.result.tools:
            described = [tool.owner, tool.name, tool.tool_type, tool.version, tool.configuration]
            described += [tool.pricing_tier, tool.credits_cost, _boolean(tool.is_active)]
            wanted[canonical(described)] += 1
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
            self.expect(f"{what}: permissions", load(row["permissions"]), {"full_access": True})

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
                tools = self.tools_by_configuration[canonical(tool.configuration)]
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
            actual[canonical([row["user_id"], row["operation"], *amounts])] += bool(amounts[0])
            reasons[canonical([row["user_id"], row["reason"]])] += 1
            if is_blank(row["reason"]) or is_blank(row["run_id"]):
                self.found.append(f"credit_logs {row['id']}: without a reason or a run")
        wanted = Counter(
            canonical([each.owner, each.operation, each.amount, each.balance_after])
            for each in self.result.credits
        )
        self.expect_same("credit_logs", actual, wanted)
        self.expect_same("credit_logs, reasons of a user", reasons, Counter(list(reasons)))
        sums = sums_of_logs(self.after)
        for row in self.after.rows("users"):
            if (key := str(row["id"])) in self.result.users:
                balance = _decimal(row.get("credits_balance"))
                self.expect(f"users {key} credits_balance", balance, self.result.balances[key])
                self.expect(f"sum of the credit_logs of user {key}", sums[key], balance)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _decimal(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)
