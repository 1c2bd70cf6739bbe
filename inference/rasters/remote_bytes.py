"""RemoteFile: parts of a file on a web server, each checked before anybody sees it.

GDAL's own way of reading over HTTP takes what comes: a page of a proxy, an answer that breaks off or the file that
replaced another become pixels, or zeros, without an error. So the bytes are fetched here. A part counts when its
status, its place in the file, its length and the file's version are the ones that were asked for.

    wanted ranges -> blocks -> runs of missing blocks -> HttpClient, a few at once -> blocks, remembered
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from ..errors import InferenceError, RasterChangedError, RasterOpenError, ServiceError
from ..events import Canceled
from ..net.addresses import shown
from ..net.http import HttpClient, Reply, TryAgain

BLOCK = 2**15
"""Bytes that are asked for at least."""
_RUN = 128
"""Most blocks that one request asks for."""
_REMEMBERED = 2048
"""Blocks of one file that are kept: what the tiles of two rows share."""
_WHOLE = 32 * 2**20
"""Bytes of the largest file that is read from a server which does not give out parts."""
_PLACE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class FileVersion:
    """What tells a file from a changed one, as far as its server says it; members that it does not say are empty."""

    size: int
    etag: str = ""
    modified: str = ""

    def is_other(self, later: FileVersion) -> bool:
        """Tell whether another answer speaks of another content."""
        if self.size != later.size:
            return True
        if self.etag and later.etag:
            return self.etag != later.etag
        return bool(self.modified and later.modified) and self.modified != later.modified


class RemoteFile:
    """A file behind a URL; any thread may read.

    Args:
        url: http or https.
        client: Asks the server, patiently.
        threads: Where requests run.

    Raises:
        NetworkError, CredentialError, ServiceError, Canceled: it cannot be reached, or is not there.
        RasterOpenError: the server does not give out parts of files, and the file is large.
    """

    def __init__(self, url: str, client: HttpClient, threads: Executor) -> None:
        """Ask for the beginning, which tells size and version."""
        self.url, self._client, self._threads = url, client, threads
        self._blocks: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._whole: bytes | None = None
        self.version, first = self._look()
        self._keep(first)

    @property
    def size(self) -> int:
        """Give its length in bytes."""
        return self.version.size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Give the bytes of several (start, end), which end at the end of the file at the latest.

        Raises:
            NetworkError, CredentialError, ServiceError, Canceled: as for opening it.
            RasterChangedError: it is another file now.
        """
        if self._whole is not None:
            return [self._whole[start:end] for start, end in ranges]
        ranges = [(start, min(end, self.size)) for start, end in ranges]
        wanted = {block for start, end in ranges if end > start for block in _blocks_of(start, end)}
        futures = self._asked(sorted(wanted))
        blocks = {block: future.result() for block, future in futures.items()}
        return [_cut(blocks, start, end) for start, end in ranges]

    # -- Blocks that are remembered --------------------------------------------------------------------------------

    def _asked(self, wanted: Sequence[int]) -> dict[int, Future[bytes]]:
        """Give what will hold the blocks; those that nobody has asked for yet are asked for."""
        missing: list[int] = []
        with self._lock:
            for block in wanted:
                if block in self._blocks:
                    self._blocks.move_to_end(block)
                else:
                    self._blocks[block] = Future()
                    missing.append(block)
            futures = {block: self._blocks[block] for block in wanted}
        runs = list(_runs(missing))
        for run in runs:
            if len(runs) == 1:
                self._fill(run, futures)  # in this thread: nothing else is to be fetched beside it
            else:
                self._threads.submit(self._fill, run, futures)
        return futures

    def _fill(self, run: Sequence[int], futures: dict[int, Future[bytes]]) -> None:
        """Fetch a run of blocks, and hand them to whoever waits; a failure goes to all of them."""
        start, end = run[0] * BLOCK, min((run[-1] + 1) * BLOCK, self.size)
        failure: Exception | None = ServiceError(f"A part of '{shown(self.url)}' could not be read.")
        content = b""
        try:
            content, failure = self._fetch(start, end), None
        except (InferenceError, Canceled) as error:
            failure = error
        finally:  # whatever happens, somebody may be waiting
            self._hand_out(run, futures, content, failure)

    def _hand_out(
        self, run: Sequence[int], futures: dict[int, Future[bytes]], content: bytes, failure: Exception | None
    ) -> None:
        if failure is not None:
            with self._lock:
                for block in run:
                    self._blocks.pop(block, None)  # the next one who wants it asks anew
        for place, block in enumerate(run):
            if failure is not None:
                futures[block].set_exception(failure)
            else:
                futures[block].set_result(content[place * BLOCK : (place + 1) * BLOCK])
        self._forget()

    def _keep(self, first: bytes) -> None:
        if self._whole is None:
            future: Future[bytes] = Future()
            future.set_result(first)
            self._blocks[0] = future

    def _forget(self) -> None:
        with self._lock:
            for block in [block for block, future in self._blocks.items() if future.done()]:
                if len(self._blocks) <= _REMEMBERED:
                    return
                del self._blocks[block]

    # -- Requests ----------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[FileVersion, bytes]:
        """Give version and first block; the whole file where the server gives out no parts."""
        whole: list[Reply] = []

        def accept(reply: Reply) -> None:
            if reply.status == 206:
                return self._accept(reply, 0, None)
            if reply.status != 200 or _is_page(reply):
                raise TryAgain(_nonsense(self.url, reply), few=True)
            whole.append(reply)
            if len(whole) < 2 or whole[-1].content != whole[-2].content:
                raise TryAgain(_no_parts(self.url), few=True)  # a server in trouble, or one that never does
            return None

        try:
            reply = self._ask(0, BLOCK, _WHOLE, accept)
        except ServiceError as error:
            if "max_bytes" in error.context:
                raise _no_parts(self.url) from error
            raise
        version = _version(reply)
        if reply.status == 200:
            self._whole = reply.content
        return version, reply.content

    def _fetch(self, start: int, end: int) -> bytes:
        """Give the bytes from start to end, which lies inside.

        Raises: as `read`.
        """
        try:
            reply = self._ask(start, end, 2 * (end - start), lambda reply: self._accept(reply, start, end))
        except ServiceError as error:
            if error.context.get("status") in (404, 410, 416):
                raise RasterChangedError.of(shown(self.url)) from error
            raise
        return reply.content

    def _ask(self, start: int, end: int, max_bytes: int, accept: Callable[[Reply], None]) -> Reply:
        # Compressed on the way, a part would not be a part of the file.
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        return self._client.get(self.url, headers=headers, max_bytes=max(max_bytes, BLOCK), accept=accept)

    def _accept(self, reply: Reply, start: int, end: int | None) -> None:
        """Look at a part; `end` is None where the file's size is not known yet.

        Raises:
            TryAgain: it is not the part that was asked for.
        """
        place = _PLACE.match(reply.headers.get("content-range", ""))
        is_plain = reply.headers.get("content-encoding", "identity") == "identity"
        if reply.status != 206 or place is None or not is_plain:
            raise TryAgain(_nonsense(self.url, reply))
        first, last, total = (int(number) for number in place.groups())
        if end is not None and self.version.is_other(_version(reply)):
            raise TryAgain(
                RasterChangedError.of(shown(self.url)), few=True
            )  # or another server of the same name, which is behind
        wanted = min(BLOCK, total) if end is None else end
        if (first, last + 1, len(reply.content)) != (start, wanted, wanted - start):
            raise TryAgain(_nonsense(self.url, reply))


def _version(reply: Reply) -> FileVersion:
    place = _PLACE.match(reply.headers.get("content-range", ""))
    size = int(place[3]) if place is not None else len(reply.content)
    return FileVersion(size, reply.headers.get("etag", ""), reply.headers.get("last-modified", ""))


def _is_page(reply: Reply) -> bool:
    return reply.content_type == "text/html" or reply.content[:512].lstrip().lower().startswith(
        (b"<!doctype", b"<html")
    )


def _nonsense(url: str, reply: Reply) -> ServiceError:
    what = "a page for a browser" if _is_page(reply) else f"something else (status {reply.status})"
    return ServiceError(
        f"The server sends {what} instead of a part of '{shown(url)}'.",
        hint="Check the address, and whether the network wants a sign-in; what is done already is kept.",
    )


def _no_parts(url: str) -> RasterOpenError:
    return RasterOpenError(
        f"The server of '{shown(url)}' does not give out parts of files, and this one is large.",
        hint="Download the file, and detect in that.",
    )


def _blocks_of(start: int, end: int) -> range:
    return range(start // BLOCK, (end - 1) // BLOCK + 1)


def _runs(blocks: Sequence[int]) -> Iterator[list[int]]:
    """Give the blocks in runs without a gap, so that each is one request."""
    run: list[int] = []
    for block in blocks:
        if run and (block != run[-1] + 1 or len(run) >= _RUN):
            yield run
            run = []
        run.append(block)
    if run:
        yield run


def _cut(blocks: dict[int, bytes], start: int, end: int) -> bytes:
    if end <= start:
        return b""
    content = b"".join(blocks[block] for block in _blocks_of(start, end))
    offset = start // BLOCK * BLOCK
    return content[start - offset : end - offset]
