"""How the dashboard's source tables are read: optional columns, exact texts, words."""

from __future__ import annotations

from collections.abc import Iterator

from models.dashboard.ids import LARGEST, integers, named
from models.engine.source import Sources, SourceTable
from models.errors import Incompatible, MigrationError
from models.postgres.catalog import TEXT_TYPES

JSON_TYPES = {"json", "jsonb"} | TEXT_TYPES


def optional(table: SourceTable, column: str, default: str, *, alias: str) -> str:
    """SQL for an optional column: its value, or `default` where it is missing."""
    return table.value(column, alias) if column in table.columns else default


# A column may take letters of either case for equal. The database's own collation never does, and
# is in conflict with no other one.
_EXACTLY = '::text COLLATE "default"'


def texts(sources: Sources) -> dict[str, str]:
    """The texts that target rows are made of: of a user `u`, a subscription `s`, a project `p`."""
    email = sources.users.value("email", "u") + _EXACTLY
    gpt_id = sources.subscriptions.value("gpt_id", "s") + _EXACTLY
    active_gpt = f"p.active_gpt_id{_EXACTLY}"
    return {
        "email": email,
        "email_is_blank": is_blank(email),
        "gpt_id": gpt_id,
        "gpt_id_is_blank": is_blank(gpt_id),
        "active_gpt": active_gpt,
        "active_gpt_is_blank": is_blank(active_gpt),
        # The tool that a project names; braces are doubled, since fragments are templates too.
        "pointed": named(sources, "ai_tools", "p.active_gpt_id")
        .replace("{", "{{")
        .replace("}", "}}"),
    }


def is_blank(text: str) -> str:
    """SQL condition: a text is null, or nothing but white space; binds :blanks.

    One that begins with a visible letter of ASCII is not, and to see that costs a tenth of trimming
    it.
    """
    is_plain = f"{text} COLLATE \"C\" BETWEEN '!' AND '~'"
    return f"(({is_plain}) IS NOT TRUE AND btrim(coalesce({text}, ''), :blanks) = '')"


_USUAL = "'active', 'inactive', 'paused', 'user', 'student', 'teacher', 'admin'"


def exact(table: SourceTable, column: str, default: str, *, alias: str = "s") -> str:
    """SQL for an optional column as text that compares byte for byte."""
    return optional(table, column, default, alias=alias) + _EXACTLY


def word(text: str) -> str:
    """SQL for a text trimmed and in small letters; binds :blanks.

    Latin letters alone: by Turkish rules a capital I has another small letter. A text of small
    letters is a word already, which most are: trimming costs ten times as much as to see that.
    """
    trimmed = f'lower(btrim({text}, :blanks) COLLATE "C") COLLATE "default"'
    return f"CASE WHEN {text} IN ({_USUAL}) THEN {text} ELSE {trimmed} END"


def examine(sources: Sources) -> Iterator[MigrationError]:
    """Columns that the rules cannot work with, beyond what the engine finds wrong itself."""
    preferences = sources.subscriptions.columns.get("preferences")
    if preferences and preferences.base not in JSON_TYPES:
        yield Incompatible(
            f"{sources.subscriptions.label}.preferences: expected json, jsonb or text, found"
            f" {preferences.type}",
            hint="Change the column's type.",
        )
    gpt = sources.projects.columns.get("active_gpt_id")
    if gpt is None:
        return
    label = f"{sources.projects.label}.active_gpt_id"
    numbers = integers(sources, "ai_tools")
    room = len(str(LARGEST[numbers.type])) if numbers else 36
    if gpt.base not in TEXT_TYPES - {"character"} or (gpt.length is not None and gpt.length < room):
        yield Incompatible(
            f"{label}: expected varchar({room}) or longer to hold a tool's id, found {gpt.type}",
            hint="Change the column's type.",
        )
    if gpt.generated:
        yield Incompatible(
            f"{label}: expected a plain column to hold a tool's id, found a generated one",
            hint="Make it a plain column: ALTER COLUMN active_gpt_id DROP EXPRESSION.",
        )
    for key in sources.projects.keys:
        if "active_gpt_id" in key.columns:
            yield Incompatible(
                f"{label} has a foreign key ({key.name}), so it cannot hold a tool's id",
                hint="Drop that foreign key first.",
            )
