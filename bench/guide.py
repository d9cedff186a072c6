"""The guide's loops, written out with an ORM as it writes them: a call a row, a commit a call.

The guide's services (`setup_user_ai_suite`, `add_tool_to_suite`, `assign_tool`, …) commit what they
add; the users and the projects are committed at the end of their loops.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from bench import script
from bench.mapping import Classes, map_tables

AMOUNTS = {"teacher": 500, "admin": 1000}


def prepare(engine: Engine) -> None:
    """The schema as an application's own revision makes it: with all keys and indexes."""
    with engine.begin() as connection:
        for statement in (script.TABLES, *script.INDEXES, *script.KEYS):
            connection.exec_driver_sql(statement)


def run(engine: Engine) -> None:
    """All users, then all projects."""
    prepare(engine)
    classes = map_tables(engine)
    with Session(engine, expire_on_commit=False) as session:
        for user in session.scalars(select(classes.User).order_by(classes.User.id)).all():
            migrate_user(session, classes, user, commit=session.commit)
        session.commit()
        for project in session.scalars(select(classes.Project)).all():
            migrate_project(session, classes, project, commit=session.commit)
        session.commit()
    with engine.begin() as connection:
        connection.execute(text(script.DEFAULTS))


def migrate_user(session: Session, classes: Classes, user: Any, *, commit: Any) -> None:
    """One user: the columns, the suite, a tool and an assignment a subscription, the credits."""
    role = (user.role or "").strip().lower()
    user.user_type = role if role in ("student", "teacher", "admin", "developer") else "student"
    user.billing_tier, user.is_active = "free", True
    user.organization_id, user.department_id = "default-organization", "default-department"
    suite = classes.AISuite(
        id=f"s-{user.id}",
        user_id=user.id,
        name=f"{user.email}'s Suite",
        configuration={"default_tools": [], "preferences": {}, "auto_configuration": True},
    )
    session.add(suite)
    commit()
    for subscription in session.scalars(
        select(classes.Subscription).where(classes.Subscription.user_id == user.id)
    ).all():
        _add_tool(
            session,
            classes,
            commit,
            user.id,
            kinds=("t", "u"),
            key=subscription.id,
            name=subscription.gpt_id,
            version=subscription.version,
            configuration=subscription.preferences or {},
            is_active=subscription.status == "active" and subscription.is_active is not False,
            suite_id=suite.id,
        )
    amount = AMOUNTS.get(user.user_type, 100)
    user.credits_balance = amount
    session.add(
        classes.CreditLog(
            id=f"g-{user.id}", user_id=user.id, operation="add", amount=amount,
            balance_after=amount, reason="migration_grant", run_id="guide",
        )
    )  # fmt: skip
    commit()


def migrate_project(session: Session, classes: Classes, project: Any, *, commit: Any) -> None:
    """One project: its column, and the tool of its GPT."""
    project.is_template = bool(project.is_template)
    if project.active_gpt_id and project.active_gpt_id.strip():
        configuration = {"project_id": project.id, "gpt_id": project.active_gpt_id}
        _add_tool(
            session, classes, commit, project.user_id, kinds=("p", "v"), key=project.id,
            name=project.active_gpt_id, version=None, configuration=configuration,
            is_active=True, suite_id=f"s-{project.user_id}",
        )  # fmt: skip
        project.active_gpt_id = f"p-{project.id}"


def _add_tool(
    session: Session,
    classes: Classes,
    commit: Any,
    user_id: str,
    *,
    kinds: tuple[str, str],
    key: str,
    **values: Any,
) -> None:
    tool_id = f"{kinds[0]}-{key}"
    session.add(
        classes.AITool(
            id=tool_id, tool_type="gpt", pricing_tier="free", credits_cost=0,
            requires_approval=False, **values,
        )
    )  # fmt: skip
    commit()
    session.add(
        classes.ToolAssignment(
            tool_id=tool_id, user_id=user_id, assigned_by="system",
            permissions={"full_access": True},
        )
    )  # fmt: skip
    commit()
    session.add(
        classes.ToolUsageLog(
            id=f"{kinds[1]}-{key}", user_id=user_id, tool_id=tool_id, session_id="guide",
            action="migration", credits_used=0, status="completed", duration=0,
        )
    )  # fmt: skip
    commit()
