"""The ids of the rows that the migration makes: each follows from its legacy row's key.

Text ids are those of `models.engine.keys`. Where a target table has integer ids, an id is the
first one plus the key, or plus twice the key where two kinds of rows share a table: injective, in
the order of the keys, and far beyond the sequence, which is never touched. A key out of range has
no id (null): a page that meets one quarantines that row.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.engine import keys
from models.engine.schema.target import Target
from models.engine.source import Sources

# A letter for what a row stands for.
SUITE, SUBSCRIPTION_TOOL, PROJECT_TOOL = "s", "t", "p"
SUBSCRIPTION_USAGE, PROJECT_USAGE = "u", "v"
OPENING, GRANT = "o", "g"
USAGE_OF = {SUBSCRIPTION_TOOL: SUBSCRIPTION_USAGE, PROJECT_TOOL: PROJECT_USAGE}

TABLE_OF = {
    SUITE: "ai_suites",
    SUBSCRIPTION_TOOL: "ai_tools",
    PROJECT_TOOL: "ai_tools",
    SUBSCRIPTION_USAGE: "tool_usage_logs",
    PROJECT_USAGE: "tool_usage_logs",
    OPENING: "credit_logs",
    GRANT: "credit_logs",
}
# (step, offset): the id of a key is the first id + step * key + offset.
_PLACE = {
    SUITE: (1, 0),
    SUBSCRIPTION_TOOL: (2, 0),
    PROJECT_TOOL: (2, 1),
    SUBSCRIPTION_USAGE: (2, 0),
    PROJECT_USAGE: (2, 1),
    GRANT: (2, 0),
    OPENING: (2, 1),
}
FIRST = {"integer": 10**9, "bigint": 2**62}
LARGEST = {"integer": 2**31 - 1, "bigint": 2**63 - 1}
# Tables that are made with the ids of those of them that are there.
_ALIKE = ("ai_tools", "ai_suites", "tool_usage_logs", "marketplace_listings")


@dataclass(frozen=True)
class Integers:
    """Integer ids of a table: their type, and the first that is the migration's."""

    type: str
    first: int

    def most(self, kind: str) -> int:
        """The largest key that has an id of this kind."""
        step, offset = _PLACE[kind]
        return (LARGEST[self.type] - self.first - offset) // step


def integers(sources: Sources, table: str) -> Integers | None:
    """The integer ids of a target table, there or still to be made; None where they are texts."""
    found = sources.shape.integer_ids
    kind = found.get(table)
    if kind is None and table in _ALIKE and table not in sources.shape.text_ids:
        kind = next((found[each] for each in _ALIKE if each in found), None)
    if kind is None:
        return None
    # By the type that the first run found: an id stays where the column becomes a bigint.
    first_type = sources.shape.first_types.get(table, kind)
    return Integers(kind, sources.shape.first_id or FIRST[first_type])


def id_of(sources: Sources, kind: str, key: str, base_type: str) -> str:
    """SQL for the id of the `kind` row that stands for the legacy key expression `key`."""
    found = integers(sources, TABLE_OF[kind])
    if found is None:
        return keys.id_of(kind, key, base_type)
    step, offset = _PLACE[kind]
    return (
        f"CASE WHEN {key} BETWEEN 0 AND {found.most(kind)}"
        f" THEN ({found.first + offset} + {step} * {key}::bigint)::{found.type} END"
    )


def has_kind(sources: Sources, kind: str, column: str) -> str:
    """SQL condition: `column` holds an id of this kind."""
    found = integers(sources, TABLE_OF[kind])
    if found is None:
        return keys.has_kind(kind, column)
    step, offset = _PLACE[kind]
    return f"({column} >= {found.first} AND ({column} - {found.first}) % {step} = {offset})"


def usage_of(sources: Sources, tool_id: str, kind: str = "") -> str:
    """SQL for the id of the usage log that was made beside a tool of ours, of that or either kind.

    A log has the number of its tool, where ids are integers.
    """
    tools, logs = integers(sources, "ai_tools"), integers(sources, "tool_usage_logs")
    if tools and logs:
        if tools == logs:
            return tool_id
        number = f"({tool_id} - {tools.first} + {logs.first})::{logs.type}"
        return f"(CASE WHEN {tool_id} >= {tools.first} THEN {number} END)"
    if kind:
        return f"'{USAGE_OF[kind]}' || substr({tool_id}, 2)"
    whens = " ".join(f"WHEN '{tool}' THEN '{usage}'" for tool, usage in USAGE_OF.items())
    return f"(CASE left({tool_id}, 1) {whens} END || substr({tool_id}, 2))"


def is_made(sources: Sources, target: Target, tool_id: str) -> str:
    """SQL condition: the migration made the tool that has this id of ours.

    A text says so itself. An integer may be the application's, whose sequence was set beyond ours:
    there, the usage log of the migration has to say it.
    """
    if integers(sources, "ai_tools") is None:
        return "true"
    logs = target.table("tool_usage_logs").sql
    return f"""EXISTS (SELECT FROM {logs} made
      WHERE made.tool_id = {tool_id} AND made.action = 'migration')"""


def named(sources: Sources, table: str, text: str) -> str:
    """SQL for the id in a target table that a text names; null where it names none."""
    if integers(sources, table) is None:
        return text
    digits = f"CASE WHEN {text} ~ '^(0|[1-9][0-9]{{0,18}})$' THEN {text}::numeric END"
    return f"(CASE WHEN {digits} <= {LARGEST['bigint']} THEN {text}::bigint END)"


def ours(sources: Sources, table: str, text: str) -> str:
    """The same for an id that may be the migration's: what is smaller may be a legacy key."""
    found = integers(sources, table)
    if found is None:
        return text
    return f"(CASE WHEN {named(sources, table, text)} >= {found.first} THEN {text}::bigint END)"


def organization(sources: Sources) -> str:
    """SQL for the id of the organization that the migration makes."""
    found = integers(sources, "organizations")
    return str(found.first) if found else "'default-organization'"


def department(sources: Sources) -> str:
    """SQL for the id of the department that the migration makes."""
    found = integers(sources, "departments")
    return str(found.first) if found else "'default-department'"


def largest_key(sources: Sources) -> int | None:
    """The largest legacy key that has ids of every kind; None where any key has."""
    found = ((kind, integers(sources, table)) for kind, table in TABLE_OF.items())
    return min((each.most(kind) for kind, each in found if each), default=None)
