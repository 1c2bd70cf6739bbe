"""One request on its way: in a thread of its own, so that who waits for it can give up at any time.

    thread                                   who waits
    resolve, connect, ask -> head  ------->  status and headers
    read                  -> chunks ------>  chunks, through a short queue
                                             every tenth of a second: cancelled? too late?

No library can be called off while it waits for a server. A thread that nobody waits for any more ends by itself, at
the latest when its own time limit is over.
"""

from __future__ import annotations

import http.client
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from ..errors import InferenceError, ServiceError
from ..events import Canceled
from .addresses import is_public_address, shown
from .limits import HttpLimits

_CHUNK = 16 * 1024
"""Bytes; of a chunk that breaks off in the middle nothing comes through."""
_QUEUE = 32
_CONNECTIONS = 8
"""Kept open to one server."""

_PACKINGS = ("", "identity", "gzip", "x-gzip", "deflate")
_LOOK = 0.1
"""Seconds between two looks at whether somebody has cancelled."""

_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError, ValueError)


class InnerAddressError(OSError):
    """The other end of a connection turned out to be inside of the own network."""


class StallError(Exception):  # as requests' own names: it tells what happened
    """Nothing came within the time limit."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class ShortAnswer(Exception):
    """The answer ended before its length."""


_Item = Union[requests.Response, bytes, Exception, None]


class Exchange:
    """A request that runs; first `head`, then `chunks`, and `close` in any case."""

    def __init__(
        self, send: Callable[[], requests.Response], limits: HttpLimits, is_cancelled: Callable[[], bool]
    ) -> None:
        """Start it; `send` runs in the thread and gives a response whose body is still to be read."""
        self._limits, self._is_cancelled = limits, is_cancelled
        self._items: queue.Queue[_Item] = queue.Queue(_QUEUE)
        self._given_up = threading.Event()
        threading.Thread(target=self._run, args=(send,), daemon=True, name="kestrel-http").start()

    def head(self) -> requests.Response:
        """Wait for status and headers; the body is not to be read from it.

        Raises:
            Canceled: the user has cancelled.
            StallError: the server did not answer in time.
            Exception: one of requests', or an error of Kestrel's, as it came.
        """
        item = self._next(self._limits.connect + self._limits.read)
        if not isinstance(item, requests.Response):
            raise ShortAnswer
        return item

    def chunks(self) -> Iterator[bytes]:
        """Give the body; raises as `head`, and ShortAnswer where it is not all there."""
        while True:
            item = self._next(self._limits.read)
            if not isinstance(item, bytes):
                return
            yield item

    def close(self) -> None:
        """Give up what is still under way."""
        self._given_up.set()

    def _next(self, seconds: float) -> _Item:
        end = time.monotonic() + seconds
        while True:
            if self._is_cancelled():
                raise Canceled
            try:
                item = self._items.get(timeout=_LOOK)
            except queue.Empty:
                if time.monotonic() > end:
                    raise StallError(seconds) from None
                continue
            if isinstance(item, Exception):
                raise item
            return item

    def _run(self, send: Callable[[], requests.Response]) -> None:
        try:
            with send() as response:
                self._put(response)
                _check_packing(response)
                for chunk in response.iter_content(_CHUNK):
                    if not self._put(chunk):
                        return
                self._check_length(response)
            self._put(None)
        except (*_FAILURES, ShortAnswer, InferenceError) as error:
            self._put(error)

    def _put(self, item: _Item) -> bool:
        while not self._given_up.is_set():
            try:
                self._items.put(item, timeout=1.0)
            except queue.Full:
                continue
            return True
        return False

    @staticmethod
    def _check_length(response: requests.Response) -> None:
        """Compare what came with what was said: not every version of the library does."""
        stated = response.headers.get("Content-Length", "")
        if stated.isdigit() and response.raw.tell() < int(stated):
            raise ShortAnswer


def _check_packing(response: requests.Response) -> None:
    """Refuse what is packed several times over: a few kilobytes unpack to gigabytes at once in older libraries.

    Raises:
        ServiceError: it is.
    """
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in _PACKINGS:
        raise ServiceError(f"The answer of '{shown(response.url)}' is packed in a way that was not asked for.")


def make_session(*, guarded: bool) -> requests.Session:
    """Give a session that takes nothing from the environment: no proxy, no .netrc.

    Args:
        guarded: It talks to addresses of the public internet alone.
    """
    session = requests.Session()
    session.trust_env = False
    adapter = _GuardedAdapter(pool_maxsize=_CONNECTIONS) if guarded else HTTPAdapter(pool_maxsize=_CONNECTIONS)
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)
    return session


def _check_peer(sock: Any) -> None:
    address = str(sock.getpeername()[0])
    if not is_public_address(address):
        sock.close()
        raise InnerAddressError


class _GuardedHTTPConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _check_peer(self.sock)


class _GuardedHTTPSConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _check_peer(self.sock)


class _GuardedHTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _GuardedHTTPConnection


class _GuardedHTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _GuardedHTTPSConnection


class _GuardedAdapter(HTTPAdapter):
    """Looks at a connection's other end before anything is said: a name may have another address the next time."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _GuardedHTTPPool, "https": _GuardedHTTPSPool}


def proxies_for(url: str, proxies: Mapping[str, str]) -> dict[str, str] | None:
    """Give the proxies of requests for a URL.

    Args:
        url: What is to be asked for.
        proxies: Scheme -> proxy's URL; under "no_proxy" hosts or beginnings of URLs that go without, with commas.

    Returns:
        None where no proxy is to be used.
    """
    host = (urllib3.util.parse_url(url).host or "").lower()
    for entry in (part.strip().lower() for part in proxies.get("no_proxy", "").split(",")):
        if entry and (
            url.lower().startswith(entry) if "://" in entry else f".{host}".endswith(f".{entry.lstrip('.')}")
        ):
            return None
    used = {scheme: proxy for scheme, proxy in proxies.items() if scheme != "no_proxy"}
    return used if url.partition(":")[0].lower() in used else None
