"""JSON, read strictly: bounded depth, finite numbers of a bounded length, no member twice."""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_BYTES = 4 * 2**20
MAX_JSON_DEPTH = 64
_MAX_DIGITS = 20
_SHOWN = 60  # characters of a name or number that a message shows


class UnusableJsonError(ValueError):
    """The text is JSON, and holds what nobody should have to read; the text of the error is the reason."""


class NestedTooDeeplyError(UnusableJsonError):
    """Objects lie in objects so deep that the text could not be read to its end."""


def parse_json(text: str) -> Any:
    """Read JSON of any kind.

    Raises:
        json.JSONDecodeError: the syntax is at fault.
        UnusableJsonError: a member stands twice, a number is too long or not finite, it is nested too deeply.
    """
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_float=finite_number,
            parse_int=bounded_integer,
        )
    except RecursionError as error:
        raise NestedTooDeeplyError("it is nested too deeply") from error
    if _depth(content) > MAX_JSON_DEPTH:
        raise UnusableJsonError("it is nested too deeply")
    return content


def finite_number(text: str) -> float:
    """Read a number with a fraction or exponent.

    Raises:
        UnusableJsonError: it is too large for a float.
    """
    number = float(text)
    if number - number != 0:
        raise UnusableJsonError(f"it holds the number {text[:_SHOWN]}")
    return number


def bounded_integer(text: str) -> int:
    """Read a whole number.

    Raises:
        UnusableJsonError: it has more digits than any use has for them.
    """
    if len(text) > _MAX_DIGITS:
        raise UnusableJsonError(f"it holds a number of {len(text)} digits")
    return int(text)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise UnusableJsonError(f"the member '{name[:_SHOWN]}' stands in it twice")
        content[name] = value
    return content


def _refuse_constant(name: str) -> float:
    raise UnusableJsonError(f"it holds the number {name}")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
