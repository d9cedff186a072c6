"""Rule 6: which GPT a project's `active_gpt_id` stands for."""

from __future__ import annotations

from models.engine.source import Sources
from models.engine.step import Context

SUBSCRIPTION = "subscription"

# OFFSET keeps it a look by key. A blank gpt_id is none.
_OF_SUBSCRIPTION = """coalesce((
    SELECT CASE WHEN btrim({gpt_id}, :blanks) <> '' THEN {gpt_id} END FROM {subscriptions} s
    WHERE s.id = {key} AND s.id::text = {held} AND s.user_id = {owner} OFFSET 0
  ), {held})"""


def names_subscriptions(sources: Sources) -> bool:
    """Whether the column holds keys of subscriptions, as the mapping says."""
    return sources.shape.options.get("active_gpt") == SUBSCRIPTION


# A number may be the key of a subscription and the id of a tool. In a project that no run has
# switched, it is what the old application wrote.
_IS_CHOICE = """(EXISTS (
    SELECT FROM {subscriptions} s
    WHERE s.id = {key} AND s.id::text = {held} AND s.user_id = {owner} OFFSET 0)
  AND NOT EXISTS (
    SELECT FROM migration.before_images i WHERE i.entity = 'project'
      AND i.legacy_key = {project}::text AND i.was ? 'active_gpt_id'))"""


def is_choice(context: Context, held: str, owner: str, project: str) -> str:
    """SQL condition: the text surely names a subscription of the owner, also where it is a tool's.

    `project` is the project's key.
    """
    if not names_subscriptions(context.sources):
        return "false"
    key = context.sources.key_named("subscription", held)
    return context.render(_IS_CHOICE, key=key, held=held, owner=owner, project=project)


def may_rename(context: Context, held: str, renamed: str) -> str:
    """SQL condition: a tool is renamed to what the text stands for now.

    Not where it is the key of a subscription that is gone: then the tool keeps its GPT.
    """
    if not names_subscriptions(context.sources):
        return "true"
    key = context.sources.key_named("subscription", held)
    return f"({key} IS NULL OR {renamed} IS DISTINCT FROM {held})"


def gpt_of(context: Context, held: str, owner: str) -> str:
    """SQL for the GPT that the text `held` stands for in a project of this owner.

    An id of one of the owner's subscriptions stands for its GPT; anything else is a GPT itself.
    """
    if not names_subscriptions(context.sources):
        return held
    key = context.sources.key_named("subscription", held)
    return context.render(_OF_SUBSCRIPTION, key=key, held=held, owner=owner)
