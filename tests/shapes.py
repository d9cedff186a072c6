"""The public dashboard's own shapes, with the names that the oracle looks for."""

from __future__ import annotations

from producer.demo import shapes
from tests.oracle import Names
from tests.variants import Variant

_DASHBOARD = ("dashboard_users", "dashboard_gpt_subscriptions", "dashboard_projects")


def _shape(
    name: str, about: str, tables: tuple[str, str, str] = _DASHBOARD, **columns: str
) -> Variant:
    names = Names(
        *tables,
        targets={
            "tool_usage_logs": "dashboard_tool_usage_logs",
            "marketplace_listings": "dashboard_marketplace_listings",
        },
        columns={"subscriptions": columns},
        active_gpt="subscription",
    )
    return Variant(name, about, shapes.SCRIPTS[name], names, mapping=name)


TODAY = _shape(
    "today",
    "the public dashboard of today: integer ids, other names, columns that are missing or required",
    gpt_id="gpt_definition_id",
    preferences="configuration",
)
CORE = _shape(
    "today-core",
    "the same, with the users of its core: a status in capitals, no preferences",
    ("users", "gpt_subscriptions", "organization_projects"),
    gpt_id="plan_id",
)
JULY = _shape(
    "july-2025",
    "the public dashboard of July 2025: as today's, but a subscription has a name only",
    gpt_id="name",
    preferences="configuration",
)
EACH = (TODAY, CORE, JULY)
