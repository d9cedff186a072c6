"""The oracle itself, on a dozen rows whose outcome is known by heart."""

from __future__ import annotations

from copy import deepcopy
from decimal import Decimal

import pytest

from tests.oracle import (
    DEFAULT,
    Credit,
    History,
    Names,
    Row,
    Snapshot,
    Tool,
    User,
    counts,
    differences,
    expected,
    parse,
    refreshed,
)

GRANTS = {"student": Decimal(100), "teacher": Decimal(500), "*": Decimal("7.50")}
FULL = '{"full_access": true}'


def made(**columns: str | None) -> Row:
    return columns


def subscription(
    key: str, owner: str, preferences: str | None = "{}", **columns: str | None
) -> Row:
    row: Row = {"id": key, "user_id": owner, "gpt_id": "tutor", "status": "active"}
    return row | {"preferences": preferences, "version": "2", "is_active": "true"} | columns


def project(key: str, owner: str, gpt: str | None, is_template: str | None = None) -> Row:
    return {"id": key, "user_id": owner, "active_gpt_id": gpt, "is_template": is_template}


def suite(key: str, owner: str, created_at: str) -> Row:
    return {"id": key, "user_id": owner, "name": "Mine", "created_at": created_at}


LEGACY: dict[str, list[Row]] = {
    "users": [
        {"id": "ada", "email": "ada@x.example", "role": " Teacher "},
        {"id": "bob", "email": "o'bob@x.example", "role": "parent"},
        {"id": "cyd", "email": None, "role": "admin"},
        {"id": "dan", "email": " \t", "role": "student"},
        {"id": "eve", "email": "eve@x.example", "role": "DEVELOPER"},
        {"id": "fay", "email": "fay@x.example", "role": None},
    ],
    "subscriptions": [
        subscription("s01", "ada", '{"level": 1.50, "level": 2.0}'),
        subscription("s02", "ada", None, status="paused"),
        subscription("s03", "ada", "null", is_active="false", version=None),
        subscription("s04", "ada", "{}", is_active=None),
        subscription("s05", "ada", "[]"),
        subscription("s06", "ada", "{}", gpt_id=" "),
        subscription("s07", "cyd", '"text"'),
        subscription("s08", "gone"),
        subscription("s09", "bob", '{"a": "\\u0000"}'),
        subscription("s10", "bob", '{"project_id": "p1"}', gpt_id=" tutor"),
    ],
    "projects": [
        project("p1", "ada", "tutor", "true"),
        project("p2", "bob", " "),
        project("p3", "bob", None, "false"),
        project("p4", "dan", "tutor"),
        project("p5", "gone", "tutor"),
    ],
}
BEFORE = Snapshot(tables=LEGACY)


def tool_rows() -> list[Row]:
    """What the run must write: key, owner's suite, name, version, configuration, active."""
    written: list[tuple[str, str, str, str | None, str, str]] = [
        ("t01", "S-ada", "tutor", "2", '{"level": 2}', "true"),
        ("t02", "S-ada", "tutor", "2", "{}", "false"),
        ("t03", "S-ada", "tutor", None, "{}", "false"),
        ("t04", "S-ada", "tutor", "2", "{}", "true"),
        ("t10", "S-bob", " tutor", "2", '{"project_id": "p1"}', "true"),
        ("tp1", "S-ada", "tutor", None, '{"gpt_id": "tutor", "project_id": "p1"}', "true"),
    ]
    common: Row = {"tool_type": "gpt", "pricing_tier": "free", "credits_cost": "0.00"}
    common["requires_approval"] = "false"
    columns = ("id", "suite_id", "name", "version", "configuration", "is_active")
    return [common | dict(zip(columns, values, strict=True)) for values in written]


def after_run() -> Snapshot:
    """The tables as a right run leaves them."""
    tables = deepcopy(LEGACY)
    types = {"ada": "teacher", "bob": "student", "eve": "developer", "fay": "student"}
    balances = {"ada": "500.00", "bob": "100.00", "eve": "7.50", "fay": "100.00"}
    for row in tables["users"]:
        key = str(row["id"])
        done = key in types
        row["user_type"], row["credits_balance"] = types.get(key), balances.get(key)
        row["billing_tier"] = "free" if done else None
        row["organization_id"], row["department_id"] = ("O", "D") if done else (None, None)
        row["is_active"], row["last_login"] = "true" if done else None, None
        row["preferences"] = "{}"
    tables["projects"][0]["active_gpt_id"] = "tp1"
    tables["projects"][1]["is_template"] = "false"
    configuration = '{"default_tools": [], "preferences": {}, "auto_configuration": true}'
    tables["ai_suites"] = [
        {
            "id": f"S-{row['id']}",
            "user_id": row["id"],
            "name": f"{row['email']}'s Suite",
            "configuration": configuration,
            "is_active": "true",
        }
        for row in tables["users"]
        if row["id"] in types
    ]
    tables["ai_tools"] = tool_rows()
    owners = {str(tool["id"]): str(tool["suite_id"])[2:] for tool in tables["ai_tools"]}
    tables["tool_assignments"] = [
        made(tool_id=tool, user_id=owner, assigned_by="system", expires_at=None, permissions=FULL)
        for tool, owner in owners.items()
    ]
    tables["tool_usage_logs"] = [
        made(id=f"u-{tool}", user_id=owner, tool_id=tool, action="migration")
        | made(credits_used="0.00", status="completed")
        for tool, owner in owners.items()
    ]
    tables["credit_logs"] = [
        made(id=f"c-{key}", user_id=key, operation="add", amount=balance, balance_after=balance)
        | made(reason="grant", run_id="run")
        for key, balance in balances.items()
    ]
    tables["organizations"] = [
        made(id="O", name="Default Organization", type="education", subscription_tier="free")
        | made(settings="{}")
    ]
    tables["departments"] = [
        made(id="D", organization_id="O", name="General", description="Default department")
    ]
    return Snapshot(tables=tables)


def test_bad_rows_are_quarantined_with_every_reason_that_holds() -> None:
    assert expected(BEFORE, GRANTS).quarantined == {
        "users": {"cyd": {"no_email"}, "dan": {"no_email"}},
        "subscriptions": {
            "s05": {"bad_preferences"},
            "s06": {"no_gpt_id"},
            "s07": {"owner_quarantined", "bad_preferences"},
            "s08": {"owner_missing"},
            "s09": {"bad_preferences"},
        },
        "projects": {"p4": {"owner_quarantined"}, "p5": {"owner_missing"}},
    }


def test_users_get_type_organization_suite_and_credits() -> None:
    result = expected(BEFORE, GRANTS)
    assert {key: user.user_type for key, user in result.users.items()} == {
        "ada": "teacher",
        "bob": "student",
        "eve": "developer",
        "fay": "student",
    }
    assert result.users["bob"] == User(
        user_type="student",
        billing_tier="free",
        organization=DEFAULT,
        department=DEFAULT,
        is_active=True,
        suite=DEFAULT,
        suite_name="o'bob@x.example's Suite",
    )
    assert result.balances == {
        "ada": Decimal(500),
        "bob": Decimal(100),
        "eve": Decimal("7.50"),
        "fay": Decimal(100),
    }
    assert result.granted == Decimal("707.50")
    assert result.credits[2] == Credit("eve", "add", Decimal("7.50"), Decimal("7.50"))


def test_each_good_subscription_and_active_project_becomes_one_tool() -> None:
    result = expected(BEFORE, GRANTS)
    assert result.tools == [
        Tool("subscription", "s01", "ada", "tutor", "2", {"level": Decimal(2)}, True),
        Tool("subscription", "s02", "ada", "tutor", "2", {}, False),
        Tool("subscription", "s03", "ada", "tutor", None, {}, False),
        Tool("subscription", "s04", "ada", "tutor", "2", {}, True),
        Tool("subscription", "s10", "bob", " tutor", "2", {"project_id": "p1"}, True),
        Tool(
            *("project", "p1", "ada", "tutor", None),
            {"project_id": "p1", "gpt_id": "tutor"},
            is_active=True,
        ),
    ]
    assert result.is_template == {"p1": True, "p2": False, "p3": False}


def test_the_figures_count_rows_not_steps() -> None:
    assert counts(BEFORE, expected(BEFORE, GRANTS)) == {
        "users": {"total": 6, "migrated": 4, "quarantined": 2},
        "subscriptions": {"total": 10, "migrated": 5, "quarantined": 5},
        "projects": {"total": 5, "migrated": 3, "quarantined": 2, "with_active_gpt": 1},
        "user_types": {"teacher": 1, "student": 2, "developer": 1},
        "rows": {
            "ai_suites": 4,
            "ai_tools": 6,
            "tool_assignments": 6,
            "tool_usage_logs": 6,
            "organizations": 1,
            "departments": 1,
            "marketplace_listings": 0,
        },
        "credits_granted": "707.50",
    }


def test_missing_columns_fall_back_to_their_defaults() -> None:
    tables: dict[str, list[Row]] = {
        "users": [{"id": "1", "email": "a"}],
        "subscriptions": [{"id": "2", "user_id": "1", "gpt_id": "g"}],
        "projects": [{"id": "3", "user_id": "1", "active_gpt_id": None}],
    }
    result = expected(Snapshot(tables=tables), GRANTS)
    assert result.users["1"].user_type == "student"
    assert result.tools == [Tool("subscription", "2", "1", "g", None, {}, True)]
    assert result.is_template == {"3": False}


def adopted(suites: list[Row] | None = None, **columns: str | None) -> Snapshot:
    """One user, a teacher, in a target that the dashboard made beforehand."""
    user: Row = {"id": "ada", "email": "a", "role": "teacher", "user_type": "student"}
    user |= {"billing_tier": "free", "is_active": "true", "organization_id": None}
    user |= {"department_id": None, "credits_balance": "0.00"} | columns
    return Snapshot(
        tables={"users": [user], "ai_suites": suites or []},
        defaults={"user_type": "student", "billing_tier": "free", "is_active": "true"},
    )


def test_a_server_default_counts_as_not_set_until_there_is_a_suite() -> None:
    own = suite("S", "ada", "2024-01-01")
    assert expected(adopted(), GRANTS).users["ada"].user_type == "teacher"
    assert expected(adopted([own]), GRANTS).users["ada"].user_type == "student"
    assert expected(adopted([own], user_type=None), GRANTS).users["ada"].user_type == "teacher"
    assert expected(adopted(user_type="admin"), GRANTS).users["ada"].user_type == "admin"


def test_what_is_there_is_kept() -> None:
    before = adopted(is_active="false", billing_tier="premium", organization_id="own")
    user = expected(before, GRANTS).users["ada"]
    assert (user.is_active, user.billing_tier) == (False, "premium")
    assert (user.organization, user.department) == ("own", None)


def test_the_oldest_suite_is_kept_whatever_its_id() -> None:
    suites = [suite("A", "ada", "2024-05-01"), suite("Z", "ada", "2024-04-01")]
    assert expected(adopted(suites), GRANTS).users["ada"].suite == "Z"


@pytest.mark.parametrize(
    ("balance", "opening"),
    [
        ("25.50", [Credit("ada", "add", Decimal("25.50"), Decimal("25.50"))]),
        ("-12.25", [Credit("ada", "deduct", Decimal("12.25"), Decimal("-12.25"))]),
        ("0.00", []),
        (None, []),
    ],
)
def test_the_grant_goes_on_top_of_an_opening_row(
    balance: str | None, opening: list[Credit]
) -> None:
    result = expected(adopted(credits_balance=balance), GRANTS)
    total = Decimal(balance or 0) + 500
    assert result.credits == [*opening, Credit("ada", "add", Decimal(500), total)]
    assert result.balances == {"ada": total}


def test_logs_that_exist_lessen_the_opening_row() -> None:
    before = adopted(credits_balance="10.00")
    before.tables["credit_logs"] = [
        {"id": "1", "user_id": "ada", "operation": "add", "amount": "20.00"},
        {"id": "2", "user_id": "ada", "operation": "deduct", "amount": "5.00"},
    ]
    opening = expected(before, GRANTS).credits[0]
    assert opening == Credit("ada", "deduct", Decimal(5), Decimal(10))


def test_no_tool_is_made_of_a_tool() -> None:
    before = adopted([suite("S", "ada", "2024-01-01")])
    before.tables["ai_tools"] = [
        {"id": "canvas", "suite_id": "S", "configuration": "{}"},
        {"id": "17", "suite_id": "another", "configuration": "{}"},
        {"id": "18", "suite_id": "another", "configuration": "{}"},
    ]
    before.tables["tool_assignments"] = [{"tool_id": "18", "user_id": "ada"}]
    before.tables["projects"] = [
        project("p1", "ada", "canvas"), project("p2", "ada", "17"), project("p3", "ada", "18")
    ]  # fmt: skip
    result = expected(before, GRANTS)
    assert [(tool.key, tool.name) for tool in result.tools] == [("p2", "17")]
    assert set(result.is_template) == {"p1", "p2", "p3"}


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (None, {}),
        (" null ", {}),
        ('{"a": 1, "a": 2}', {"a": Decimal(2)}),
        ('{"a": "\\ud83c\\udfc0"}', {"a": "🏀"}),
        ('{"a": "\\\\u0000"}', {"a": "\\u0000"}),
        ('{"a": 1e131071, "b": 0e999999}', {"a": Decimal("1e131071"), "b": Decimal(0)}),
    ],
)
def test_preferences_are_read_as_jsonb_keeps_them(
    stored: str | None, value: dict[str, object]
) -> None:
    assert parse(stored) == value


@pytest.mark.parametrize(
    "stored",
    [
        *("", " ", "x", "7", '"x"', "[]", "true", "[" * 100_000),
        *("{'a': 1}", '{"a": 1', '{"a": 1,}', '{"a": NaN}', '{"a": "\t"}'),
        *('{"a": "\\u0000"}', '{"\\u0000": 1}', '{"a": ["\\ud83d"]}', '{"a": "\\u0000", "a": 1}'),
        *('{"a": 1e131072}', '{"a": 1e-16384}', '{"a": 1e99999999999999999999}'),
        *("\ufeff{}", "\u00a0{}"),
    ],
)
def test_what_jsonb_refuses_or_is_no_object_is_refused(stored: str) -> None:
    with pytest.raises(ValueError):
        parse(stored)


def test_a_right_run_has_no_differences() -> None:
    assert differences(BEFORE, after_run(), expected(BEFORE, GRANTS)) == []


@pytest.mark.parametrize(
    ("table", "number", "column", "value"),
    [
        ("users", 0, "email", "changed"),
        ("users", 0, "user_type", "student"),
        ("users", 0, "billing_tier", None),
        ("users", 0, "organization_id", None),
        ("users", 0, "department_id", "other"),
        ("users", 0, "is_active", "false"),
        ("users", 0, "credits_balance", "500.01"),
        ("users", 0, "credits_balance", None),
        ("users", 0, "last_login", "2024-01-01"),
        ("users", 2, "user_type", "admin"),
        ("users", 2, "credits_balance", "0.00"),
        ("subscriptions", 0, "preferences", "{}"),
        ("projects", 0, "active_gpt_id", "tutor"),
        ("projects", 0, "active_gpt_id", "t10"),
        ("projects", 0, "is_template", "false"),
        ("projects", 1, "active_gpt_id", None),
        ("projects", 1, "is_template", None),
        ("projects", 3, "active_gpt_id", "tp1"),
        ("projects", 3, "is_template", "false"),
        ("ai_suites", 0, "user_id", "cyd"),
        ("ai_suites", 0, "name", "ada@x.example"),
        ("ai_suites", 0, "configuration", '{"default_tools": []}'),
        ("ai_tools", 0, "suite_id", "S-bob"),
        ("ai_tools", 0, "name", "other"),
        ("ai_tools", 0, "tool_type", "assistant"),
        ("ai_tools", 0, "version", None),
        ("ai_tools", 0, "configuration", '{"level": 1.5}'),
        ("ai_tools", 0, "configuration", '{"level": "2"}'),
        ("ai_tools", 1, "configuration", None),
        ("ai_tools", 1, "configuration", "null"),
        ("ai_tools", 0, "pricing_tier", "basic"),
        ("ai_tools", 0, "credits_cost", "0.01"),
        ("ai_tools", 0, "is_active", "false"),
        ("tool_assignments", 0, "user_id", "bob"),
        ("tool_assignments", 0, "assigned_by", None),
        ("tool_assignments", 0, "expires_at", "2024-01-31"),
        ("tool_assignments", 0, "permissions", '{"full_access": 1}'),
        ("tool_usage_logs", 0, "user_id", "bob"),
        ("tool_usage_logs", 0, "tool_id", "t02"),
        ("tool_usage_logs", 0, "action", "use"),
        ("tool_usage_logs", 0, "credits_used", "1.00"),
        ("tool_usage_logs", 0, "status", "failed"),
        ("credit_logs", 0, "user_id", "bob"),
        ("credit_logs", 0, "operation", "deduct"),
        ("credit_logs", 0, "amount", "499.99"),
        ("credit_logs", 0, "balance_after", "0.00"),
        ("credit_logs", 0, "reason", ""),
        ("credit_logs", 0, "run_id", None),
        ("organizations", 0, "name", "Other"),
        ("organizations", 0, "type", "school"),
        ("departments", 0, "organization_id", None),
    ],
)
def test_one_wrong_value_is_noticed(
    table: str, number: int, column: str, value: str | None
) -> None:
    after = after_run()
    after.tables[table][number][column] = value
    assert differences(BEFORE, after, expected(BEFORE, GRANTS))


@pytest.mark.parametrize("table", sorted(after_run().tables))
def test_one_missing_row_is_noticed(table: str) -> None:
    after = after_run()
    after.tables[table].pop(0)
    assert differences(BEFORE, after, expected(BEFORE, GRANTS))


@pytest.mark.parametrize("table", sorted({*after_run().tables, "marketplace_listings"}))
def test_one_extra_row_is_noticed(table: str) -> None:
    after = after_run()
    rows = after.tables.setdefault(table, [])
    extra: Row = rows[0] | {"id": "extra"} if rows else {"id": "extra"}
    rows.append(extra | ({"user_id": "eve"} if table == "tool_assignments" else {}))
    assert differences(BEFORE, after, expected(BEFORE, GRANTS))


def test_rows_of_the_new_application_must_stay_as_they_were() -> None:
    before = Snapshot(tables=LEGACY | {"ai_tools": [{"id": "canvas", "version": "3"}]})
    after = after_run()
    after.tables["ai_tools"].append({"id": "canvas", "version": "3"})
    assert differences(before, after, expected(before, GRANTS)) == []
    after.tables["ai_tools"][-1]["version"] = "4"
    assert differences(before, after, expected(before, GRANTS)) == [
        "ai_tools ('canvas',) version: '4', expected '3'"
    ]


def test_nobody_is_the_assigner_where_that_is_a_foreign_key() -> None:
    after = after_run()
    for row in after.tables["tool_assignments"]:
        row["assigned_by"] = None
    after = Snapshot(tables=after.tables, assigned_by_is_foreign_key=True)
    assert differences(BEFORE, after, expected(BEFORE, GRANTS)) == []


def test_fixed_rows_are_expected_on_top_of_the_target_before_the_first_run() -> None:
    now = after_run()
    assert expected(refreshed(BEFORE, now), GRANTS) == expected(BEFORE, GRANTS)
    now.tables["users"][2]["email"] = "cyd@x.example"
    now.tables["subscriptions"][4]["preferences"] = "{}"
    fixed = expected(refreshed(BEFORE, now), GRANTS)
    assert fixed.users["cyd"].user_type == "admin"
    assert "s05" not in fixed.quarantined["subscriptions"]
    assert fixed.quarantined["subscriptions"]["s07"] == {"bad_preferences"}


@pytest.mark.parametrize(
    ("held", "subscriptions", "gpts", "named", "wanted"),
    [
        pytest.param("7", {"7": "chess"}, {}, "tutor", "chess", id="changed since"),
        pytest.param("7", {}, {"chess"}, "tutor", "tutor", id="gone: one that it was"),
        pytest.param("7", {}, {"chess"}, "chess", "chess", id="gone: the other one"),
        pytest.param("7", {}, {"chess"}, "piano", "7", id="gone: one that it never was"),
        pytest.param("8", {"7": "chess"}, {}, "8", "8", id="no subscription at all"),
        pytest.param("piano", {"7": "chess"}, {}, "tutor", "piano", id="chosen since"),
    ],
)
def test_the_tool_of_a_project_is_named_after_what_the_project_holds_means_now(
    held: str, subscriptions: dict[str, str], gpts: set[str], named: str, wanted: str
) -> None:
    names = Names(active_gpt="subscription")
    first = subscription("7", "ada", gpt_id="tutor")
    tables = LEGACY | {"subscriptions": [first], "projects": [project("p1", "ada", "7")]}
    before = Snapshot(names, tables)
    now = Snapshot(names, deepcopy(tables))
    now.tables["subscriptions"] = [first | {"id": k, "gpt_id": g} for k, g in subscriptions.items()]
    now.tables["projects"][0]["active_gpt_id"] = "tool"
    configuration = f'{{"project_id": "p1", "gpt_id": "{named}"}}'
    now.tables["ai_tools"] = [{"id": "tool", "configuration": configuration}]
    history = History(held={"p1": held})
    history.gpts["7"] = {("ada", gpt) for gpt in gpts} | {("bob", "piano")}
    found = expected(refreshed(before, now, history), GRANTS)
    assert [tool.name for tool in found.tools if tool.kind == "project"] == [wanted]
