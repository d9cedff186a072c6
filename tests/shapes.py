"""The public dashboard's own shapes, with the names that the oracle looks for."""

from __future__ import annotations

from producer.demo import shapes
from tests.oracle import Names
from tests.variants import Variant


def _shape(name: str, about: str, gpt_id: str) -> Variant:
    names = Names(
        "dashboard_users",
        "dashboard_gpt_subscriptions",
        "dashboard_projects",
        targets={
            "tool_usage_logs": "dashboard_tool_usage_logs",
            "marketplace_listings": "dashboard_marketplace_listings",
        },
        columns={"subscriptions": {"gpt_id": gpt_id, "preferences": "configuration"}},
        active_gpt="subscription",
    )
    return Variant(name, about, shapes.SCRIPTS[name], names, mapping=name)


TODAY = _shape(
    "today",
    "the public dashboard of today: integer ids, other names, columns that are missing or required",
    "gpt_definition_id",
)
JULY = _shape(
    "july-2025",
    "the public dashboard of July 2025: as today's, but a subscription has a name only",
    "name",
)
EACH = (TODAY, JULY)
