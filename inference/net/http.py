"""HttpClient: every request that Kestrel makes itself, with time limits, tries, cancelling, and secrets kept in place.

    get, get_json, download -> tries with pauses (`_patiently`) -> redirects by hand (`_opened`) -> Exchange

A credential belongs to one origin (scheme, host, port) and goes nowhere else, whatever a server refers to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from ..errors import CredentialError, InferenceError, ServiceError
from ..events import Canceled
from ..secrets import Secrets
from .addresses import (
    Resolver,
    check_given,
    check_jump,
    host_of,
    is_inner,
    origin_of,
    refused_jump,
    shown,
    system_resolver,
)
from .failures import has_cause, short_answer, told, too_long
from .limits import HttpLimits
from .part_file import PartFile
from .replies import Reply, TryAgain, check_file, check_status, json_object
from .transport import Exchange, InnerAddressError, StallError, make_session, proxies_for

__all__ = ["Credential", "HttpClient", "Reply", "TryAgain", "make_client"]

_MAX_REDIRECTS = 5
_MAX_BYTES = 64 * 2**20
_LONGEST_URL = 2000
"""Characters; longer questions go as a form. Servers and proxies take 2 to 8 thousand."""

_REDIRECTS = (301, 302, 303, 307, 308)
_FEW_TRIES = 4
"""Of an error that is as likely to stay: ArcGIS says 500 both for a wrong question and for too much work."""

_LOOK = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Credential:
    """What signs requests to one origin, and to no other.

    Attributes:
        origin: 'https://host' or 'https://host:8443', as `addresses.origin_of` writes it.
        headers: Header lines of each request; secret.
    """

    origin: str
    headers: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class _Question:
    url: str
    form: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpClient:
    """Asks servers; any thread may use it, several at once.

    Args:
        credentials: At most one for each origin.
        proxies: Scheme -> URL of the proxy, and "no_proxy" -> hosts or beginnings of URLs, with commas.
        ca_file: Certificates to trust, in PEM; None: those that come with requests.
        limits: Times, see HttpLimits.
        is_cancelled: Asked about ten times a second while something is waited for.
        on_wait: Told why a request is tried again, and the seconds until then.
        resolve: Gives the addresses of a host.
    """

    def __init__(
        self,
        credentials: Iterable[Credential] = (),
        *,
        proxies: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        limits: HttpLimits | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[str, float], None] | None = None,
        resolve: Resolver = system_resolver,
    ) -> None:
        """Keep the settings; nothing is asked yet."""
        self._credentials = {origin_of(credential.origin): credential.headers for credential in credentials}
        self._proxies = dict(proxies or {})
        self._verify: Any = ca_file or True
        self._limits = limits or HttpLimits()
        self._is_cancelled, self._on_wait, self._resolve = is_cancelled, on_wait, resolve
        self._named_by: dict[str, str] = {}  # origins that a public server named -> where
        self._session = make_session(guarded=False)
        self._guarded = make_session(guarded=True)

    def get(
        self,
        url: str,
        params: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = _MAX_BYTES,
        post: bool = False,
        tries: bool = True,
        missing: bool = False,
        patience: float | None = None,
        accept: Callable[[Reply], None] = lambda _reply: None,
    ) -> Reply:
        """Ask, and give the whole answer.

        Args:
            url: What to ask for; its query, if any, stays.
            params: Added to the query; None values are left out. Too long ones go as a form.
            headers: Added to the request.
            max_bytes: Longest answer.
            post: Send the parameters as a form in any case.
            tries: False: ask once only, where asking twice would do something twice.
            missing: The status 404 is an answer, too: the server does not have it.
            patience: Seconds for all tries; None: as the client's limits say.
            accept: Looks at the answer; may raise TryAgain, or an error of Kestrel's.

        Raises:
            NetworkError, ServiceError, CredentialError: see inference/errors.py.
            Canceled: the user has cancelled.
        """
        check_given(url)
        question = _question(url, params, headers or {}, post=post)

        def once() -> Reply:
            reply = self._once(question, max_bytes, (404,) if missing else ())
            accept(reply)
            return reply

        return self._patiently(once, tries=tries, patience=patience)

    def get_json(
        self,
        url: str,
        params: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        post: bool = False,
        tries: bool = True,
        patience: float | None = None,
    ) -> dict[str, Any]:
        """Ask ArcGIS's REST interface (`f=json` is added) and give the answer, which is an object.

        Raises: as `get`; an error that the server tells with status 200 is one, too.
        """
        found: dict[str, Any] = {}

        def accept(reply: Reply) -> None:
            found.clear()
            found.update(json_object(reply))

        parameters = {"f": "json", **(params or {})}
        self.get(url, parameters, headers=headers, post=post, tries=tries, patience=patience, accept=accept)
        return found

    def download(
        self,
        url: str,
        target: Path,
        params: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[int, int | None], None] | None = None,
        max_bytes: int | None = None,
    ) -> str:
        """Download to a file, which is there whole or not at all, and give its SHA-256 in hex.

        What came before a cut, or before an earlier call was cancelled, is kept in `<target>.part` and not asked for
        again where the server says that the file is still the same.

        Args:
            url: As `get`.
            target: The file; its folder exists. An older one is replaced.
            params: As `get`.
            progress: Told the bytes so far, and in all where the server says it.
            max_bytes: Largest file.

        Raises: as `get`; OutputError, DiskFullError where the file cannot be written.
        """
        check_given(url)
        question = _question(url, params, {"Accept-Encoding": "identity"}, post=False)
        with PartFile(target, shown(url)) as part:
            return self._patiently(lambda: self._fetch(question, part, progress, max_bytes))

    def signs(self, url: str) -> bool:
        """Tell whether requests to this server carry a sign-in."""
        return origin_of(url) in self._credentials

    def share_token(self, owner: str, other: str) -> None:
        """Send the token of one server to another one, which the first says to be its own.

        Passwords are not shared, nor is a token whose new way would be less safe.
        """
        headers = self._credentials.get(origin_of(owner), {})
        tokens = {name: value for name, value in headers.items() if value.lower().startswith("bearer ")}
        if tokens and not (origin_of(owner).startswith("https") and origin_of(other).startswith("http:")):
            self._credentials.setdefault(origin_of(other), tokens)

    def check_reference(self, source: str, target: str) -> None:
        """Look at an address that a server's answer holds, before it is asked.

        Raises:
            ServiceError: it would lead from a public server into the own network.
        """
        if not is_inner(host_of(source), self._resolve):
            check_jump(source, target, self._resolve)
            self._named_by[origin_of(target)] = source

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()
        self._guarded.close()

    def _fetch(
        self,
        question: _Question,
        part: PartFile,
        progress: Callable[[int, int | None], None] | None,
        max_bytes: int | None,
    ) -> str:
        """Try once to get the rest of a file."""
        asked = _Question(question.url, None, {**question.headers, **part.range_headers()})
        try:
            with self._opened(asked, accepts=(416,)) as (exchange, response):
                try:
                    total = part.begin(response.status_code, response.headers)
                except ServiceError as error:
                    raise TryAgain(error, few=True) from None  # the part is thrown away: all of it next time
                for chunk in exchange.chunks():
                    part.write(chunk)
                    if max_bytes is not None and part.size > max_bytes:
                        part.discard()
                        raise too_long(question.url, max_bytes)
                    if progress is not None:
                        progress(part.size, total)
            if not part.is_whole:
                raise TryAgain(short_answer(question.url))
            try:
                check_file(part.beginning(), question.url)
            except (TryAgain, InferenceError):
                part.discard()
                raise
        except TryAgain as again:
            again.gained = part.gained()
            raise
        return part.finish()

    def _once(self, question: _Question, max_bytes: int, accepts: tuple[int, ...]) -> Reply:
        """Try once to get an answer."""
        end = time.monotonic() + self._limits.total
        with self._opened(question, accepts) as (exchange, response):
            content = bytearray()
            stated = response.headers.get("Content-Length", "")
            if stated.isdigit() and int(stated) > max_bytes:
                raise _too_long_answer(question, response, max_bytes)
            for chunk in exchange.chunks():
                content += chunk
                if len(content) > max_bytes:
                    raise _too_long_answer(question, response, max_bytes)
                if time.monotonic() > end:
                    raise StallError(self._limits.total)
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status_code, headers, bytes(content), str(response.url))

    @contextmanager
    def _opened(
        self, question: _Question, accepts: tuple[int, ...] = ()
    ) -> Iterator[tuple[Exchange, requests.Response]]:
        """Give the exchange that ends a chain of redirects, and its head, whose status is one of success."""
        url, form = question.url, question.form
        for _ in range(_MAX_REDIRECTS + 1):
            exchange = Exchange(self._sender(question, url, form), self._limits, self._is_cancelled)
            try:
                with told(url, self._limits):
                    response = exchange.head()
                    if response.status_code not in _REDIRECTS:
                        if response.status_code not in accepts:
                            check_status(url, response)
                        yield exchange, response
                        return
                    target = _redirected(url, response)
            finally:
                exchange.close()
            if response.status_code == 303:
                form = None
            elif form is not None and host_of(url) != host_of(target):
                raise ServiceError(f"The server of '{shown(url)}' would hand the request on to another server.")
            url = target
        raise ServiceError(f"The address '{shown(question.url)}' is redirected more than {_MAX_REDIRECTS} times.")

    def _sender(self, question: _Question, url: str, form: Mapping[str, str] | None) -> Callable[[], requests.Response]:
        """Give what sends one request; it runs in a thread, as looking up a host's addresses may take long."""

        def send() -> requests.Response:
            source = self._named_by.get(origin_of(url), question.url)
            guarded = url != source and not is_inner(host_of(source), self._resolve)
            if guarded:
                check_jump(source, url, self._resolve)
            proxies = proxies_for(url, self._proxies)
            # Through a proxy the other end of the connection is the proxy.
            session = self._guarded if guarded and not proxies else self._session
            headers = {"User-Agent": "Kestrel (QGIS)", "Accept-Encoding": "gzip, deflate"}
            headers.update({**question.headers, **self._signature(url)})
            try:
                asked = session.prepare_request(
                    requests.Request("GET" if form is None else "POST", url, headers, data=form)
                )
                # The adapter, not the session: that would prepare the next step of a redirect, and keep cookies.
                return session.get_adapter(url).send(
                    asked,
                    stream=True,
                    timeout=(self._limits.connect, self._limits.read),
                    verify=self._verify,
                    proxies=proxies,
                )
            except requests.RequestException as error:
                if has_cause(error, InnerAddressError):
                    raise refused_jump(source, url) from None
                raise

        return send

    def _signature(self, url: str) -> Mapping[str, str]:
        """Give the headers that sign a request to this URL."""
        headers = self._credentials.get(origin_of(url), {})
        if headers and urlsplit(url).scheme.lower() == "http" and not is_inner(host_of(url), self._resolve):
            raise CredentialError(
                f"The address '{shown(url)}' is not encrypted; anybody on the way could read the sign-in.",
                hint="Use its https:// address.",
            )
        return headers

    def _patiently(self, attempt: Callable[[], _T], *, tries: bool = True, patience: float | None = None) -> _T:
        """Try until it works, until it is clear that it will not, or until patience ends."""
        patience = self._limits.patience if patience is None else min(patience, self._limits.patience)
        pauses, end, count = self._limits.pauses(), time.monotonic() + patience, 0
        while True:
            try:
                return attempt()
            except TryAgain as again:
                count += 1
                if again.gained:
                    pauses, end, count = self._limits.pauses(), time.monotonic() + patience, 0
                left = end - time.monotonic()
                if not tries or left <= 0 or (again.few and count >= _FEW_TRIES):
                    raise again.error from again.__cause__
                # The last try comes when patience ends, not a pause before that.
                pause = min(max(next(pauses), again.pause), left)
                if self._on_wait is not None:
                    self._on_wait(again.error.message, pause)
            self._wait(pause)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._is_cancelled():
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK))
        raise Canceled


def make_client(
    secrets: Secrets,
    *,
    limits: HttpLimits | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
    on_wait: Callable[[str, float], None] | None = None,
) -> HttpClient:
    """Give a client that signs with a run's secrets, see HttpClient."""
    return HttpClient(
        [Credential(entry["origin"], entry["headers"]) for entry in secrets.credentials],
        proxies=secrets.proxies,
        ca_file=secrets.ca_file or None,
        limits=limits,
        is_cancelled=is_cancelled,
        on_wait=on_wait,
    )


def _too_long_answer(question: _Question, response: requests.Response, max_bytes: int) -> Exception:
    error = too_long(question.url, max_bytes)
    # All of a file instead of a part of it: some caches do that for a while.
    return TryAgain(error, few=True) if "Range" in question.headers and response.status_code == 200 else error


def _question(url: str, params: Mapping[str, Any] | None, headers: Mapping[str, str], *, post: bool) -> _Question:
    values = {name: _text(value) for name, value in (params or {}).items() if value is not None}
    url = url.partition("#")[0]
    query = urlencode(values)
    if post or len(url) + len(query) > _LONGEST_URL:
        return _Question(url, values, headers)
    return _Question(f"{url}{'&' if '?' in url else '?'}{query}" if query else url, None, headers)


def _text(value: Any) -> str:
    """Write a parameter as ArcGIS's REST interface reads it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _redirected(url: str, response: requests.Response) -> str:
    """Give where a redirect leads.

    Raises:
        ServiceError: nowhere, or to something that is not read.
    """
    location = response.headers.get("Location", "")
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    if not location or urlsplit(target).scheme.lower() not in ("http", "https") or "@" in urlsplit(target).netloc:
        raise ServiceError(f"The server redirects '{shown(url)}' to something that Kestrel does not read.")
    origin_of(target)
    return target
