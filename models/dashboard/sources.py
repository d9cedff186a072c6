"""The three source tables of the dashboard."""

from models.engine.source import Source

USERS = Source(
    "user",
    setting="MIGRATION_USERS_TABLE",
    requires=("email",),
    reads=("email", "role"),
    judged_by=("email",),
    writes=("email",),
)
SUBSCRIPTIONS = Source(
    "subscription",
    table="gpt_subscriptions",
    setting="MIGRATION_SUBSCRIPTIONS_TABLE",
    parent="user",
    parent_column="user_id",
    requires=("gpt_id",),
    reads=("user_id", "gpt_id", "status", "is_active", "version", "preferences"),
    judged_by=("user_id", "gpt_id", "preferences"),
    if_none=(("gpt_id", "text"),),
)
PROJECTS = Source(
    "project",
    setting="MIGRATION_PROJECTS_TABLE",
    parent="user",
    parent_column="user_id",
    requires=("active_gpt_id",),
    reads=("user_id", "active_gpt_id", "is_template"),
    judged_by=("user_id",),
    writes=("active_gpt_id",),
    if_none=(("active_gpt_id", "text"), ("is_template", "boolean")),
)
SOURCES = (USERS, SUBSCRIPTIONS, PROJECTS)
