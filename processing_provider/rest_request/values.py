"""Values of a request's members: read strictly, whether they came as JSON or, from a form, as its text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ...inference.errors import JobError
from ...inference.models.strict_json import parse_json

_SHOWN = 60  # characters of a name that a message shows
_BOOLEANS = {"true": True, "false": False}


def refused(member: str, reason: str, way_out: str = "") -> JobError:
    """Give the error for a member: "The request's member 'maxOverlapRatio' is no number."."""
    return JobError(f"The request's member '{member[:_SHOWN]}' {reason}.", hint=way_out, member=member[:_SHOWN])


def is_empty(value: Any) -> bool:
    """Tell whether a member is there without saying anything, as clients write what was left out."""
    return value is None or value == {} or value == [] or (isinstance(value, str) and not value.strip())


def unpacked(member: str, value: Any) -> Any:
    """Give a value that may be JSON text in its JSON form; any other text stays as it is.

    Raises:
        JobError: it begins as JSON and is none, or none that should be read.
    """
    if not isinstance(value, str) or not value.strip().startswith(("{", "[")):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError as error:
        where = f"{error.msg} in line {error.lineno}, column {error.colno}"
        raise refused(member, f"is not valid JSON: {where}", "Mend the text, or give the value as JSON.") from error
    except ValueError as error:
        raise refused(member, f"cannot be used: {error}") from error


def as_object(member: str, value: Any, example: str) -> dict[str, Any]:
    """Give a JSON object.

    Raises:
        JobError: it is none; `example` says what is expected.
    """
    content = unpacked(member, value)
    if not isinstance(content, dict):
        raise refused(member, "is not a JSON object", f"Write for example {example}.")
    return content


def as_boolean(member: str, value: Any) -> bool:
    """Give true or false, also where they are written as texts.

    Raises:
        JobError: it is neither.
    """
    found = value if isinstance(value, bool) else _BOOLEANS.get(str(value).strip().lower())
    if found is None:
        raise refused(member, "is neither true nor false")
    return found


def as_number(member: str, value: Any) -> float:
    """Give a finite number, also where it is written as text.

    Raises:
        JobError: it is none.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise refused(member, "is not a number") from error
    if not math.isfinite(number):
        raise refused(member, "is not a number")
    return number


def as_text(member: str, value: Any) -> str:
    """Give a text in one line.

    Raises:
        JobError: it is none.
    """
    if not isinstance(value, str):
        raise refused(member, "is not a text")
    if any(ord(character) < 32 for character in value.strip()):
        raise refused(member, "holds line breaks or other control characters")
    return value.strip()


def given(content: Mapping[str, Any]) -> dict[str, Any]:
    """Give the members that say something."""
    return {name: value for name, value in content.items() if not is_empty(value)}
