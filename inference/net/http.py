"""HttpClient: every request that Kestrel makes itself, with time limits, tries, cancelling, and secrets kept in place.

    get, get_json, download -> tries with pauses (`_patiently`) -> redirects by hand (`_opened`) -> Exchange

A credential belongs to one origin (scheme, host, port) and goes nowhere else, whatever a server refers to.
"""

from __future__ import annotations

import email.utils
import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from ..errors import CredentialError, InferenceError, NetworkError, ServiceError, first_line
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
from .limits import HttpLimits
from .part_file import PartFile
from .transport import Exchange, InnerAddressError, ShortAnswer, StallError, make_session, proxies_for

_MAX_REDIRECTS = 5
_MAX_BYTES = 64 * 2**20
_LONGEST_URL = 2000
"""Characters; longer questions go as a form. Servers and proxies take 2 to 8 thousand."""

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 502, 503, 504)
_FEW_TRIES = 4
"""Of an error that is as likely to stay: ArcGIS says 500 both for a wrong question and for too much work."""

_LOOK = 0.1
_T = TypeVar("_T")

SIGN_IN_CODES = (401, 403, 498, 499)
"""Of HTTP, or of the `code` in an error of ArcGIS: 498 an expired or wrong token, 499 none."""


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

        return self._patiently(once, tries=tries)

    def get_json(
        self,
        url: str,
        params: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        post: bool = False,
        tries: bool = True,
    ) -> dict[str, Any]:
        """Ask ArcGIS's REST interface (`f=json` is added) and give the answer, which is an object.

        Raises: as `get`; an error that the server tells with status 200 is one, too.
        """
        found: dict[str, Any] = {}

        def accept(reply: Reply) -> None:
            found.clear()
            found.update(json_object(reply))

        self.get(url, {"f": "json", **(params or {})}, headers=headers, post=post, tries=tries, accept=accept)
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
            return self._patiently(lambda: self._fetch(question, part, progress, max_bytes), tries=True)

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
                        raise _too_long(question.url, max_bytes)
                    if progress is not None:
                        progress(part.size, total)
            if not part.is_whole:
                raise TryAgain(_short(question.url))
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
                with _told(url, self._limits):
                    response = exchange.head()
                    if response.status_code not in _REDIRECTS:
                        if response.status_code not in accepts:
                            _check_status(url, response)
                        yield exchange, response
                        return
                    target = _redirected(url, response)
            finally:
                exchange.close()
            if response.status_code not in (307, 308):
                form = None
            elif form is not None and host_of(url) != host_of(target):
                raise ServiceError(f"The server of '{shown(url)}' would hand the request on to another server.")
            url = target
        raise ServiceError(f"The address '{shown(question.url)}' is redirected more than {_MAX_REDIRECTS} times.")

    def _sender(self, question: _Question, url: str, form: Mapping[str, str] | None) -> Callable[[], requests.Response]:
        """Give what sends one request; it runs in a thread, as looking up a host's addresses may take long."""

        def send() -> requests.Response:
            guarded = url != question.url and not is_inner(host_of(question.url), self._resolve)
            if guarded:
                check_jump(question.url, url, self._resolve)
            proxies = proxies_for(url, self._proxies)
            # Through a proxy the other end of the connection is the proxy.
            session = self._guarded if guarded and not proxies else self._session
            headers = {"User-Agent": "Kestrel (QGIS)", **question.headers, **self._signature(url)}
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
                if _has_cause(error, InnerAddressError):
                    raise refused_jump(question.url, url) from None
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

    def _patiently(self, attempt: Callable[[], _T], *, tries: bool) -> _T:
        """Try until it works, until it is clear that it will not, or until patience ends."""
        pauses, end, count = self._limits.pauses(), time.monotonic() + self._limits.patience, 0
        while True:
            try:
                return attempt()
            except TryAgain as again:
                count += 1
                if again.gained:
                    pauses, end, count = self._limits.pauses(), time.monotonic() + self._limits.patience, 0
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


def _plain(text: Any) -> str:
    """Give a server's text in one line, of bearable length, without a full stop."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())[:300].rstrip(".")


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


def _check_status(url: str, response: requests.Response) -> None:
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


@contextmanager
def _told(url: str, limits: HttpLimits) -> Iterator[None]:
    """Translate what happens on the way; never with a library's text, which may hold the query."""
    try:
        yield
    except (StallError, requests.Timeout) as error:
        seconds = getattr(
            error, "seconds", limits.connect if isinstance(error, requests.ConnectTimeout) else limits.read
        )
        raise TryAgain(_unreachable(url, f"no answer within {seconds:g} s")) from None
    except ShortAnswer:
        raise TryAgain(_short(url)) from None
    except requests.exceptions.InvalidURL:
        raise ServiceError(f"The address '{shown(url)}' cannot be used.") from None
    except requests.exceptions.SSLError as error:
        if not _has_cause(error, ssl.SSLCertVerificationError):
            raise TryAgain(_unreachable(url, "the encrypted connection broke off")) from None
        raise NetworkError(
            f"The certificate of '{origin_of(url)}' is not trusted: {_certificate_reason(error)}.",
            hint="Add the authority's certificate to QGIS (Settings, Options, Authentication), or repair the server's.",
        ) from None
    except requests.exceptions.InvalidSchema:
        raise NetworkError(
            "A SOCKS proxy cannot be used: the Python package PySocks is missing.",
            hint="Choose an HTTP proxy in QGIS's network settings, or add PySocks to the environment.",
        ) from None
    except requests.exceptions.ProxyError:
        raise TryAgain(_unreachable(url, "the proxy does not let it through")) from None
    except (requests.RequestException, ValueError, OSError) as error:
        raise TryAgain(_unreachable(url, _connection_reason(error))) from None


def _unreachable(url: str, reason: str) -> NetworkError:
    return NetworkError(
        f"The server '{origin_of(url)}' cannot be reached: {reason}.",
        hint="Check the address and the connection, then run again; what is done already is kept.",
    )


def _short(url: str) -> NetworkError:
    return NetworkError(f"The answer to '{shown(url)}' breaks off before its end.", hint="Run again.")


def _too_long_answer(question: _Question, response: requests.Response, max_bytes: int) -> Exception:
    error = _too_long(question.url, max_bytes)
    # All of a file instead of a part of it: some caches do that for a while.
    return TryAgain(error, few=True) if "Range" in question.headers and response.status_code == 200 else error


def _too_long(url: str, max_bytes: int) -> ServiceError:
    return ServiceError(f"The answer to '{shown(url)}' is longer than {max_bytes} bytes.", max_bytes=max_bytes)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it wraps: as cause, as context, in urllib3's `reason`, or as an argument."""
    todo, known = [error], set()
    while todo:
        current = todo.pop()
        if id(current) in known:
            continue
        known.add(id(current))
        yield current
        wrapped = (current.__cause__, current.__context__, getattr(current, "reason", None), *current.args)
        todo += [item for item in wrapped if isinstance(item, BaseException)]


def _has_cause(error: BaseException, kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in _causes(error))


def _certificate_reason(error: BaseException) -> str:
    reasons = [cause.verify_message for cause in _causes(error) if isinstance(cause, ssl.SSLCertVerificationError)]
    return first_line(Exception(reasons[0])) if reasons else "it cannot be verified"


def _connection_reason(error: BaseException) -> str:
    names = {type(cause).__name__ for cause in _causes(error)}
    if names & {"gaierror", "NameResolutionError"}:
        return "its name is not known"
    if "ConnectionRefusedError" in names:
        return "it refuses the connection"
    if names & {"ConnectionResetError", "RemoteDisconnected", "ProtocolError", "BrokenPipeError"}:
        return "the connection broke off"
    return "there is no connection"
