"""A request as people and programs have it: JSON, the body of a form, the address of a call, or a file with one.

In all forms a value may be JSON, or a text that holds JSON: clients send forms whose fields are JSON texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from ...inference.errors import JobError
from ...inference.models.strict_json import MAX_JSON_BYTES, parse_json
from .values import is_empty, refused

_WAYS = (
    'Give the request as JSON, {"inputRaster": {"uri": "..."}, "model": {"uri": "..."}, ...}, as the body of a form, '
    "inputRaster=...&model=..., or as the path of a .json file with one of these."
)
_CALL = re.compile(r"https?://", re.IGNORECASE)
_FORM = re.compile(r"\?|[A-Za-z][\w:.%]*=")
_SECRETS = ("token", "servicetoken", "password")
_SECRET_IN_URL = re.compile(r"[?&](?:token|access_token)=[^&\s]|https?://[^/\s?#]*:[^/\s?#]*@", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What a request holds, member by member, nothing of it understood yet."""

    members: dict[str, Any]
    folder: Path | None = None
    """Where relative paths in it begin: the folder of the request's file; None: it came without one."""


def read_request(text: str) -> Request:
    """Read a request.

    Raises:
        JobError: it is none, or it holds a secret, which nothing here repeats.
    """
    text, folder = text.strip(), None
    if not text:
        raise JobError("The request is empty.", hint=_WAYS)
    if _is_file(text):
        path = Path(text).expanduser().absolute()
        text, folder = _content(path), path.parent
    members = _members(text)
    _refuse_secrets(members)
    return Request(members, folder)


def _is_file(text: str) -> bool:
    is_other = text.startswith("{") or _CALL.match(text) or _FORM.match(text)
    return not is_other and "\n" not in text and text.lower().endswith(".json")


def _content(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise _too_large()
        return path.read_text("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise JobError(f"The request's file '{path}' is not UTF-8 text.", hint="Save it as UTF-8.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JobError(f"The request's file '{path}' cannot be read: {reason}.", hint="Check its path.") from error


def _too_large() -> JobError:
    return JobError(f"The request is larger than {MAX_JSON_BYTES // 2**20} MB.", hint="Leave out what is not needed.")


def _members(text: str) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        raise _too_large()
    if text.startswith("{"):
        members = _from_json(text)
    elif _CALL.match(text):
        members = _from_form(text.partition("?")[2])
    elif _FORM.match(text):
        members = _from_form(text[1:] if text.startswith("?") else text)
    else:
        members = {}
    if not members:
        raise JobError("The request holds no member.", hint=_WAYS)
    try:
        json.dumps(members, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise JobError("The request holds half a character (a lone surrogate).", hint="Write it again.") from error
    return members


def _from_json(text: str) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except json.JSONDecodeError as error:
        raise JobError(
            f"The request is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}.", hint=_WAYS
        ) from error
    except ValueError as error:
        raise JobError(f"The request cannot be used: {error}.") from error
    return dict(content)


# -- Forms -------------------------------------------------------------------------------------------------------------


def _from_form(text: str) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for field in _fields(text):
        raw_name, _, raw_value = field.partition("=")
        name = _decoded(raw_name.strip(), raw_name)
        if name in members:
            raise refused(name, "stands in the request twice", "Remove one of the two.")
        members[name] = _form_value(name, raw_value.strip())
    return members


def _fields(text: str) -> Iterator[str]:
    """Give the fields of a form; an & or a line's end inside JSON that was not encoded separates nothing."""
    start, depth = 0, 0
    for at, character in enumerate(text):
        if character in "{[":
            depth += 1
        elif character in "}]":
            depth -= 1
        elif character in "&\n" and depth <= 0:
            if text[start:at].strip():
                yield text[start:at]
            start = at + 1
    if text[start:].strip():
        yield text[start:]


def _form_value(name: str, raw: str) -> str:
    """Give a field's text; one that is JSON already was not encoded, and its + and % are its own."""
    if raw.startswith(("{", "[", '"')):
        try:
            content = parse_json(raw)
        except ValueError:
            pass
        else:
            return content if isinstance(content, str) else raw
    return _decoded(name, raw)


def _decoded(name: str, raw: str) -> str:
    try:
        return unquote_plus(raw, errors="strict")
    except UnicodeDecodeError as error:
        raise refused(name, "is not encoded in UTF-8", "Encode the form in UTF-8.") from error


# -- Secrets -----------------------------------------------------------------------------------------------------------


def _refuse_secrets(members: dict[str, Any]) -> None:
    """Refuse what signs in: a request is kept in QGIS's history, in models and in logs.

    Raises:
        JobError: names the member, never the value.
    """
    for name, value in _walk(members, ""):
        is_secret = name.rpartition(".")[2].lower() in _SECRETS and not is_empty(value)
        if is_secret or (isinstance(value, str) and _SECRET_IN_URL.search(value)):
            raise refused(
                name,
                "holds a token or a password, which does not belong into a request",
                "Take it out and choose an authentication configuration of QGIS as AUTHENTICATION instead. "
                "If this text was stored or shared, let the token expire and make a new one.",
            )


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Give each value with the path to it, also inside texts that hold JSON."""
    pending = [(name, value)]
    while pending:
        name, value = pending.pop()
        yield name, value
        content = _json_inside(value)
        if isinstance(content, dict):
            pending += [(f"{name}.{key}" if name else str(key), entry) for key, entry in content.items()]
        elif isinstance(content, list):
            pending += [(name, entry) for entry in content]


def _json_inside(value: Any) -> Any:
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return parse_json(value)
    except ValueError:
        return None
