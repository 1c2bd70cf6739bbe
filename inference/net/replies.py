"""What servers answer: statuses, ArcGIS's errors inside of answers that look fine, and which of them may pass."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from ..errors import CredentialError, InferenceError, NetworkError, ServiceError
from .addresses import shown

_BUSY = (408, 425, 429, 502, 503, 504)

SIGN_IN_CODES = (401, 403, 498, 499)
"""Of HTTP, or of the `code` in an error of ArcGIS: 498 an expired or wrong token, 499 none."""


@dataclass(frozen=True)
class Reply:
    """An answer with a status of success.

    Attributes:
        headers: Names in lower case.
        url: Where it came from in the end; may hold secrets of a redirect, never to be told.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)
    url: str = field(repr=False)

    @property
    def content_type(self) -> str:
        """Give the media type in lower case, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


class TryAgain(Exception):  # part of the loop of tries, no error yet
    """One try failed in a way that may pass.

    Args:
        error: What is raised when no try helped.
        pause: Seconds that the server asked to wait.
        few: It is as likely to stay: a few tries are enough.
        gained: The try brought a download further, so patience begins anew.
    """

    def __init__(self, error: InferenceError, *, pause: float = 0.0, few: bool = False, gained: bool = False) -> None:
        super().__init__(error.message)
        self.error, self.pause, self.few, self.gained = error, pause, few, gained


def json_object(reply: Reply) -> dict[str, Any]:
    """Read an answer of ArcGIS's REST interface.

    Raises:
        TryAgain: it is no JSON (the page of a proxy, or of a server that is just starting), or the server was busy.
        ServiceError, CredentialError: it tells an error.
    """
    try:
        data = json.loads(reply.content)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        kind = (
            "a page for a browser" if b"<html" in reply.content[:1000].lower() else "something that is no JSON object"
        )
        raise TryAgain(ServiceError(f"The server answered with {kind} at '{shown(reply.url)}'."), few=True)
    raise_for_error(data, reply.url)
    return data


def check_file(start: bytes, url: str) -> None:
    """Look at the beginning of a file that was downloaded: servers and proxies tell errors with status 200.

    Args:
        start: All of a short file.
        url: Where it came from.

    Raises:
        TryAgain: it is a page for a browser, or tells that the server was busy.
        ServiceError, CredentialError: it tells an error.
    """
    text = start[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise TryAgain(ServiceError(f"The server answered with a page for a browser at '{shown(url)}'."), few=True)
    if not text.startswith(b"{"):
        return
    try:
        data = json.loads(start)
    except (ValueError, RecursionError):
        return
    if isinstance(data.get("error"), dict):
        raise_for_error(data, url)


def raise_for_error(data: Mapping[str, Any], url: str) -> None:
    """Raise the error that an answer of ArcGIS's REST interface tells, if it tells one.

    Raises:
        TryAgain: the server could not do it now.
        ServiceError, CredentialError: it does not do it.
    """
    error = data.get("error")
    if error is None and data.get("status") != "error":
        return
    if not isinstance(error, dict):
        error = {"code": data.get("code"), "message": error, "details": data.get("messages")}
    code = error.get("code") if isinstance(error.get("code"), int) else None
    details = error.get("details")
    texts = [error.get("message"), *(details if isinstance(details, list) else [details])]
    said = "; ".join(dict.fromkeys(_plain(text) for text in texts if text)) or f"error {code}"
    if code in SIGN_IN_CODES:
        raise _sign_in(url, code, said)
    failure = ServiceError(f"The server answered '{shown(url)}' with an error: {said}.", status=code)
    if code == 500 or code in _BUSY:
        raise TryAgain(failure, few=True)
    raise failure


def check_status(url: str, response: requests.Response) -> None:
    """Raise what a status other than one of success means."""
    status = response.status_code
    if 200 <= status < 300:
        return
    if status == 407:
        raise CredentialError(
            "The proxy wants a sign-in, or refuses the one it got.", hint="Check QGIS's network settings."
        )
    if status in SIGN_IN_CODES:
        raise _sign_in(url, status, f"status {status}")
    said = f"The server answered '{shown(url)}' with the status {status}"
    reason = _plain(response.reason or "")
    message = f"{said} ({reason})." if reason else f"{said}."
    if status in _BUSY or status >= 500:
        pause = _retry_after(response.headers.get("Retry-After", ""))
        raise TryAgain(NetworkError(message, status=status), pause=pause, few=status not in _BUSY)
    raise ServiceError(message, status=status)


def _sign_in(url: str, status: int | None, said: str) -> CredentialError:
    reasons = {498: "the token is wrong or has expired", 499: "it wants a token"}
    reason = reasons.get(status or 0, "it wants another sign-in")
    return CredentialError(
        f"The server does not let us read '{shown(url)}': {reason} ({said}).",
        hint="Choose an authentication configuration that may read it, or sign in again.",
        status=status,
    )


def _retry_after(text: str) -> float:
    """Give the seconds that a server asks to wait, as a number or until a date; 0 where it does not."""
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _plain(text: Any) -> str:
    """Give a server's text in one line, of bearable length, without a full stop."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:300].rstrip(".")
