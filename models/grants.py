"""Amounts by type, as a setting has them."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation


def parse_grants(text: str) -> dict[str, Decimal]:
    """Parse `type=amount,…` into amounts by type; `*` stands for any other type.

    Raises ValueError for an unknown form, a type that is named twice, a negative amount,
    fractions of a cent, or no `*`.
    """
    grants: dict[str, Decimal] = {}
    for part in text.split(","):
        name, separator, amount = (piece.strip() for piece in part.partition("="))
        if name in grants:
            raise ValueError(f"{name} is named twice")
        try:
            grants[name] = Decimal(amount)
        except InvalidOperation:
            separator = ""
        if not (separator and re.fullmatch(r"\*|[\w-]+", name)):
            raise ValueError(f"{part.strip()!r} is not of the form type=amount")
        value = grants[name]
        if not value.is_finite() or not 0 <= value < 10**8 or value != round(value, 2):
            raise ValueError(f"{name}={amount}: an amount is from 0 to 99999999.99, in whole cents")
    if "*" not in grants:
        raise ValueError("an amount for any other type is missing: add *=100")
    return grants
