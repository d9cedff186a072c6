"""What the address of a list asks for: search, filters, order, and after which row it begins."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from werkzeug.datastructures import MultiDict

from producer.reports.lists import Listing, Query

MOST_LETTERS = 200
# The largest bigint of PostgreSQL.
MOST_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class Asked:
    """A query as the address has it, to make the addresses of its neighbours from."""

    listing: Listing
    query: Query

    @property
    def key_at(self) -> int:
        """The place of the key among the columns."""
        return list(self.listing.columns).index("key")

    def address(self, **changes: Any) -> dict[str, str]:
        """The arguments of the same list with these changes; without one, its first page."""
        query = self.query
        sort = changes.get("sort", f"{'-' if query.is_descending else ''}{query.sort}")
        found = {"q": query.search, **query.filters, "sort": sort}
        if after := changes.get("after"):
            found["after"] = json.dumps(after)
        return {name: value for name, value in found.items() if value}

    def order(self, name: str) -> dict[str, str]:
        """The arguments that sort by a column; the other way round where it is sorted by that."""
        is_now = self.query.sort == name and not self.query.is_descending
        return self.address(sort=f"-{name}" if is_now else name)

    def direction(self, name: str) -> str:
        """How a column is sorted now, as ARIA calls it."""
        if self.query.sort != name:
            return "none"
        return "descending" if self.query.is_descending else "ascending"


def read(listing: Listing, arguments: MultiDict[str, str]) -> Asked:
    """What the arguments ask of the list; what they have no meaning for is left out."""
    # PostgreSQL has no such letter, and no key holds it.
    given = {name: value.replace("\0", "")[:MOST_LETTERS] for name, value in arguments.items()}
    sort = given.get("sort", "")
    name = sort.removeprefix("-")
    if name not in listing.sorts:
        sort = name = ""
    query = Query(
        search=given.get("q", "").strip(),
        filters={each: given[each] for each in listing.filters if given.get(each)},
        sort=name,
        is_descending=sort.startswith("-"),
        after=_place(listing, name, arguments.get("after", "")),
    )
    return Asked(listing, query)


def _place(listing: Listing, sort: str, text: str) -> tuple[Any, ...] | None:
    """The values of the row after which a page begins; None where the console made no such text."""
    types = [column.type.python_type for column in listing.order(sort)]
    try:
        found = json.loads(text)
        # A surrogate has no encoding: PostgreSQL does not take it.
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or [type(value) for value in found] != types:
        return None
    if any(
        "\0" in value if isinstance(value, str) else abs(value) > MOST_NUMBER for value in found
    ):
        return None
    return tuple(found)
