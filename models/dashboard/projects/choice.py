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


def gpt_of(context: Context, held: str, owner: str) -> str:
    """SQL for the GPT that the text `held` stands for in a project of this owner.

    An id of one of the owner's subscriptions stands for its GPT; anything else is a GPT itself.
    """
    if not names_subscriptions(context.sources):
        return held
    key = context.sources.key_named("subscription", held)
    return context.render(_OF_SUBSCRIPTION, key=key, held=held, owner=owner)
