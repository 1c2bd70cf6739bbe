"""How GDAL is called on a raster: one handle a thread, and what is done when a call fails.

a file of this computer    nothing: the error is the file's
behind http(s)             all waiting is done below GDAL, see remote_files.py; its failures come out here
in an object store         GDAL reads by itself: the handle is closed, what GDAL remembers of it is given up, and
                           the call is tried again, with pauses
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

import rasterio
from rasterio.errors import RasterioError

from ..errors import CredentialError, NetworkError, RasterError, RasterOpenError
from ..events import Canceled
from ..job import RasterItem
from .access import RasterAccess
from .gdal_options import (
    bucket_of,
    environment,
    gdal_name,
    is_in_cloud,
    is_on_web,
    network_options,
    secret_for,
    settings_for,
)
from .remote_files import RemoteFiles, ThreadFiles

T = TypeVar("T")
Opener = Callable[[str], "list[Any]"]
"""From GDAL's name to the handles that were opened, the one to read from first."""

_LOOK = 0.1
_BESIDE = ".aux.xml"
_STATISTICS = re.compile(r'<Histograms>.*?</Histograms>|<MDI key="STATISTICS_[^"]*">[^<]*</MDI>', re.DOTALL)
_EMPTY = re.compile(r"<(Metadata|PAMRasterBand|PAMDataset)\b[^<>]*>\s*</\1>")
_BLOCK_TAGS = ("BLOCK_OFFSET", "BLOCK_SIZE")
_FEW_TRIES = 4
"""Of a read that fails while the raster can be opened: the file may be damaged there."""
_REFUSED = ("HTTP response code: 401", "HTTP response code: 403", "InvalidAccessKeyId", "SignatureDoesNotMatch",
            "AccessDenied", "InvalidCredentials", "ExpiredToken")  # fmt: skip
_PASSING = ("CURL error", "timed out", "Timeout", "HTTP response code: 5", "HTTP response code: 429", "SlowDown",
            "Could not resolve", "Failed to connect", "Connection re", "ServiceUnavailable")  # fmt: skip


class GdalReading(Protocol):
    """Calls on a raster's handles; any thread may call."""

    settings: dict[str, Any]
    """Configuration of GDAL for each call; may be added to before threads read."""

    def call(self, action: Callable[[Any], T]) -> T:
        """Give what an action makes of this thread's handle.

        Raises:
            RasterioError: GDAL could not do it.
            RasterOpenError: it cannot be opened.
            NetworkError, CredentialError, ServiceError, RasterChangedError: the run cannot go on.
            Canceled: the user has cancelled.
        """
        ...

    def identity(self) -> list[Any] | None:
        """Give JSON values that tell this content from a changed one; None where nothing does."""
        ...

    def close(self) -> None:
        """Close all threads' handles; none of them may be reading."""
        ...


def reading_of(item: RasterItem, opener: Opener, access: RasterAccess) -> GdalReading:
    """Give the way of reading that suits where a raster lies."""
    name = gdal_name(item.source)
    settings, secret = settings_for(item, access.limits), secret_for(item, access.secrets.gdal)
    if is_on_web(name):
        return _WebReading(name, opener, settings, secret, access)
    if is_in_cloud(name):
        return _CloudReading(name, opener, settings, {**network_options(access.secrets), **secret}, access)
    return _FileReading(name, opener, settings, secret)


class _Handles:
    """The open handles of all threads, the one to read from first.

    rasterio keeps the files that Python reads for GDAL in context variables. A thread's would be gone with it, while
    its handles are closed later, by another thread: so each thread calls in a context that is kept with its handles.
    """

    def __init__(self) -> None:
        self._mine = threading.local()
        self._all: list[tuple[Context, list[Any]]] = []
        self._lock = threading.Lock()

    @property
    def context(self) -> Context:
        """Give what this thread is to call GDAL in."""
        context: Context | None = getattr(self._mine, "context", None)
        if context is None:
            context = self._mine.context = copy_context()
        return context

    def get(self, opener: Callable[[], list[Any]]) -> Any:
        """Give this thread's handle, opened if need be."""
        if getattr(self._mine, "handles", None) is None:
            handles = opener()
            with self._lock:
                self._all.append((self.context, handles))
            self._mine.handles = handles
        return self._mine.handles[0]

    def keep(self, handle: Any) -> None:
        """Close something of this thread with the handles."""
        with self._lock:
            self._all.append((self.context, [handle]))

    def drop(self) -> None:
        """Close this thread's handle."""
        handles, self._mine.handles = getattr(self._mine, "handles", None), None
        with self._lock:
            self._all = [(context, kept) for context, kept in self._all if kept is not handles]
        for handle in handles or []:
            handle.close()

    def close(self) -> None:
        with self._lock:
            for context, handles in reversed(self._all):
                for handle in handles:
                    context.run(handle.close)
            self._all.clear()
        self._mine = threading.local()


class _FileReading:
    """A file of this computer."""

    def __init__(self, name: str, opener: Opener, settings: dict[str, Any], secret: Mapping[str, str]) -> None:
        self._name, self._opener, self.settings, self._secret = name, opener, settings, secret
        self._handles = _Handles()

    def call(self, action: Callable[[Any], T]) -> T:
        with environment(self.settings, self._secret):
            return action(self._handles.get(lambda: self._opener(self._name)))

    def identity(self) -> list[Any] | None:
        """Give what tells each file from a changed one, of a mosaic by reference also those that it refers to."""
        try:
            with environment(self.settings, self._secret):
                files = sorted(_files_of(self._name, set()))
            states = [_state_of(name) for name in files]
        except (OSError, RasterioError):
            return None
        return [state for state in states if state is not None] or None

    def close(self) -> None:
        self._handles.close()


def _state_of(name: str) -> list[Any] | None:
    """Give name, size and time of change of a file; of one beside a raster what it says, None if that is nothing.

    QGIS and others write statistics there when somebody looks at the raster, also while it is searched.
    """
    if not name.lower().endswith(_BESIDE):
        stat = Path(name).stat()
        return [name, stat.st_size, stat.st_mtime_ns]
    said, before = _STATISTICS.sub("", Path(name).read_text("utf-8", "replace")), ""
    while said != before:
        said, before = _EMPTY.sub("", said), said
    said = "".join(said.split())
    return [name, hashlib.sha256(said.encode()).hexdigest()] if said else None


def _files_of(name: str, known: set[str]) -> set[str]:
    with rasterio.open(name) as dataset:
        files = set(dataset.files or [name])
    for file in files - known:
        known.add(file)
        if file.lower().endswith(".vrt") and file != name:
            _files_of(file, known)
    return known


class _WebReading:
    """Files behind http and https, each part of which is checked before GDAL sees it."""

    def __init__(
        self, name: str, opener: Opener, settings: dict[str, Any], secret: Mapping[str, str], access: RasterAccess
    ) -> None:
        self._name, self._opener, self.settings, self._secret = name, opener, settings, secret
        self._files = RemoteFiles(access)
        self._mine = threading.local()
        self._handles = _Handles()

    def call(self, action: Callable[[Any], T]) -> T:
        return self._handles.context.run(self._call, action)

    def _call(self, action: Callable[[Any], T]) -> T:
        with environment(self.settings, self._secret):
            try:
                result = action(self._handles.get(self._open))
            except (RasterioError, RasterError):
                self._own().raise_failure()
                raise
            self._own().raise_failure()
            return result

    def _open(self) -> list[Any]:
        own = self._own()
        handles = self._opener(own.name_of(self._name))
        try:
            own.raise_failure()
        except Exception:
            for handle in handles:
                handle.close()
            raise
        return handles

    def _own(self) -> ThreadFiles:
        own: ThreadFiles | None = getattr(self._mine, "files", None)
        if own is None:
            own = self._mine.files = ThreadFiles(self._files)
            self._handles.keep(own)
        return own

    def identity(self) -> list[Any] | None:
        """Give URL, length and version of each file, of a mosaic by reference also those that it refers to."""

        def known(dataset: Any) -> None:
            for name in _files_of(dataset.name, set()):
                self._own().look_at(name)

        self.call(lambda dataset: known(getattr(dataset, "src_dataset", dataset)))
        return self._files.identity()

    def close(self) -> None:
        self._handles.close()
        self._files.close()


class _CloudReading:
    """An object store that GDAL reads by itself."""

    def __init__(
        self, name: str, opener: Opener, settings: dict[str, Any], secret: Mapping[str, str], access: RasterAccess
    ) -> None:
        # What GDAL remembers of a file is given up when a handle of it is closed.
        self.settings = {**settings, "CPL_VSIL_CURL_NON_CACHED": bucket_of(name)}
        self._name, self._opener, self._secret, self._access = name, opener, secret, access
        self._handles = _Handles()
        self._was_open = False

    def call(self, action: Callable[[Any], T]) -> T:
        pauses, end, count = self._access.limits.pauses(), time.monotonic() + self._access.limits.patience, 0
        while True:
            is_open, start = False, time.monotonic()
            try:
                with environment(self.settings, self._secret):
                    dataset = self._handles.get(lambda: self._opener(self._name))
                    is_open = self._was_open = True
                    return action(dataset)
            except (RasterioError, RasterOpenError) as error:
                self._handles.drop()  # a part that broke off would stay in it
                count += 1
                has_stalled = time.monotonic() - start >= self._access.limits.read
                is_passing = has_stalled or self._is_passing(error, is_open)
                failure = self._judged(error, is_passing, count, end)
                if failure is not None:
                    raise failure from error
            self._wait(min(next(pauses), max(end - time.monotonic(), 0)))

    def _is_passing(self, error: Exception, is_open: bool) -> bool:
        """Tell whether an error is the network's; what was open once, and cannot be opened now, comes back."""
        text = _story(error)
        return (self._was_open and not is_open) or any(word in text for word in _PASSING)

    def _judged(self, error: Exception, is_passing: bool, count: int, end: float) -> Exception | None:
        """Give what ends the tries; None where another may help."""
        if any(word in _story(error) for word in _REFUSED):
            return CredentialError(
                f"The store does not let us read '{self._name}'.",
                hint="Check the credentials of the layer, then run again; what is done already is kept.",
            )
        if not is_passing:
            return error if count >= _FEW_TRIES else None
        if time.monotonic() < end:
            return None
        return NetworkError(
            f"The store of '{self._name}' does not answer.",
            hint="Check the connection, then run again; what is done already is kept.",
        )

    def _wait(self, seconds: float) -> None:
        if self._access.on_wait is not None:
            self._access.on_wait(f"The store of '{self._name}' does not answer as it should.", seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._access.is_cancelled():
                raise Canceled
            time.sleep(_LOOK)

    def identity(self) -> list[Any] | None:
        """Give where a compressed GeoTIFF keeps its blocks: GDAL does not tell the version of an object.

        A block that changes its length moves those that follow it.
        """
        self._handles.drop()
        found = self.call(lambda dataset: _layout(getattr(dataset, "src_dataset", dataset)))
        self._handles.drop()
        return found

    def close(self) -> None:
        self._handles.close()


def _layout(dataset: Any) -> list[Any] | None:
    """Give size, tags and places of some blocks of a compressed GeoTIFF, None of other rasters."""
    if dataset.driver != "GTiff" or dataset.compression is None:
        return None
    rows, columns = (-(-size // block) for size, block in zip(dataset.shape, dataset.block_shapes[0]))
    places = sorted({(round(y * (rows - 1) / 7), round(x * (columns - 1) / 7)) for y in range(8) for x in range(8)})
    blocks = [[dataset.get_tag_item(f"{what}_{column}_{row}", "TIFF", bidx=1) for what in _BLOCK_TAGS]
              for row, column in places]  # fmt: skip
    return [*dataset.shape, sorted(dataset.tags().items()), blocks]


def _story(error: BaseException) -> str:
    """Give the texts of an error and of all that led to it."""
    texts: list[str] = []
    current = error
    while current is not None and len(texts) < 20:
        texts.append(str(current))
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    return "\n".join(texts)
