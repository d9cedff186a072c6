"""The migration that the setting MIGRATION names, as Django's settings module is named."""

from __future__ import annotations

import functools
import os
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from models.errors import Misconfigured
from models.settings import DEFAULT_MIGRATION, Settings

if TYPE_CHECKING:
    from models.engine.migration import Migration
    from models.engine.source import Source


def migration() -> Migration:
    """The migration of this process. Raises Misconfigured where the name leads to none."""
    return _load(os.environ.get("MIGRATION") or DEFAULT_MIGRATION)


@functools.cache
def _load(name: str) -> Migration:
    from models.engine.migration import Migration

    try:
        found = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Misconfigured(
            f"MIGRATION is {name}, which cannot be imported: {error}",
            hint="Write it as package.module:NAME, and install that package beside this one.",
        ) from error
    if not isinstance(found, Migration):
        raise Misconfigured(
            f"MIGRATION is {name}, which is a {type(found).__name__} and not a Migration",
            hint="Name an instance of models.engine.api.Migration.",
        )
    found.require_declared()
    return found


def table_names(settings: Settings) -> list[str]:
    """The names of the source tables, as the settings or the migration have them."""
    copies, mapped = settings.copies, migration().shape(settings).sources

    def name(each: Source) -> str:
        if each.plural in copies:
            return copies[each.plural]
        # A setting goes before the mapping, and the mapping before a setting's default.
        if each.plural in mapped and not settings.sets(each.setting):
            return mapped[each.plural]
        return settings.named(each.setting) or each.table

    return [name(each) for each in migration().sources]
