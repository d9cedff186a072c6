"""JSON as `jsonb` takes and compares it, read by Python's own parser."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from typing import Any


def parse(stored: str | None) -> dict[str, Any]:
    """The JSON object as `jsonb` keeps it; null is an empty one. ValueError for all the rest."""
    value = load(stored)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def load(stored: str | None) -> object:
    if stored is None:
        return None
    try:
        return json.loads(
            stored,
            parse_int=_number,
            parse_float=_number,
            parse_constant=_refuse,
            object_pairs_hook=_object,
        )
    except RecursionError:
        raise ValueError("too deep") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _number(digits: str) -> Decimal:
    """A number within the limits of `numeric`: 131072 digits before the point, 16383 behind it."""
    try:
        number = Decimal(digits)
    except InvalidOperation:
        raise ValueError("no number") from None
    exponent = number.as_tuple().exponent
    if (
        not isinstance(exponent, int)
        or exponent < -16383
        or (number and number.adjusted() > 131071)
    ):
        raise ValueError("out of range")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_strings(pairs)
    return dict(pairs)


def _check_strings(value: object) -> None:
    if isinstance(value, str) and any(
        each == "\0" or "\ud800" <= each <= "\udfff" for each in value
    ):
        raise ValueError("a character that jsonb refuses")
    if isinstance(value, list | tuple):
        for each in value:
            _check_strings(each)


def canonical(value: object) -> str:
    """One text for what `jsonb` holds to be equal: neither order nor trailing zeros count."""
    if isinstance(value, dict):
        pairs = (f"{key!r}: {canonical(each)}" for key, each in sorted(value.items()))
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(canonical(each) for each in value)}]"
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        zeros = len(digits) - len("".join(map(str, digits)).rstrip("0"))
        plain = "".join(map(str, digits[: len(digits) - zeros])).lstrip("0")
        return f"{'-' * sign}{plain}e{int(exponent) + zeros}" if value else "0"
    return repr(value)
