"""RemoteFiles: what GDAL opens behind http and https, given to it by rasterio as files that Python reads.

    GDAL's name              /vsicurl/https://host/a.tif, alone or inside of another name (/vsizip/, a .vrt's sources)
    becomes                  <prefix of this thread>https://host/a.tif
    and is read through      ThreadFiles -> RemoteFiles, which all threads share -> RemoteFile -> HttpClient

GDAL has no way to hand on what went wrong, and some formats take bytes that do not come for zeros. So a failure is
kept beside it, and whoever has called GDAL asks for it afterwards, see `ThreadFiles.raise_failure`.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import rasterio
from rasterio.abc import MultiByteRangeResourceContainer

from ..errors import CredentialError, InferenceError, RasterOpenError, ServiceError
from ..events import Canceled
from ..net.addresses import shown
from ..net.http import HttpClient, make_client
from ..net.limits import FIRST_CONTACT
from .access import RasterAccess
from .remote_bytes import RemoteFile
from .remote_vrt import MARK, own_names, refers_to_others

T = TypeVar("T")

CURL = "/vsicurl/"
_LOCAL = "local-file"
_ANCHOR = "anchor.vrt"
_ANCHOR_TEXT = b'<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
_START = 2048
"""Bytes that tell what a file is; GDAL looks at no more than 1024."""
_LONGEST_VRT = 16 * 2**20
_AT_ONCE = 4
"""Most requests under way at the same time for tiles that need several."""
_TIFF = (".tif", ".tiff")
_BESIDE = (".aux.xml", ".msk", ".ovr")
"""What may stand beside `a.tif` as `a.tif.msk`."""
_BESIDE_OTHERS = (".hdr", ".prj", ".wld")
"""What may stand beside `a.png` as `a.wld`."""


class RemoteFiles:
    """The files of one raster; its threads share what has been fetched.

    Args:
        access: Secrets, limits, and who is told.
    """

    def __init__(self, access: RasterAccess) -> None:
        """Ask nothing yet."""
        self._access = access
        self._failure: Exception | None = None
        self._client = self._new_client(access.limits.patience)
        self._contact = self._new_client(min(access.limits.patience, FIRST_CONTACT.patience))
        self._files: dict[str, RemoteFile | None] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote")

    def _new_client(self, patience: float) -> HttpClient:
        limits = replace(self._access.limits, patience=patience)
        return make_client(
            self._access.secrets, limits=limits, is_cancelled=self._is_over, on_wait=self._access.on_wait
        )

    def _is_over(self) -> bool:
        return self._failure is not None or self._access.is_cancelled()

    def file(self, url: str) -> RemoteFile | None:
        """Give a file, None where the server has none; it is asked for once.

        Raises: as RemoteFile; also where there is not even the first file of a raster.
        """
        with self._lock:
            if url not in self._files:
                self._files[url] = self._told(lambda: self._opened(url))
            return self._files[url]

    def beside(self, folder: str) -> list[str]:
        """Give the names of the files that were opened in a folder, and of what stands beside them for GDAL.

        Raises: as `file`.
        """
        names = [url.rpartition("/")[2] for url in self._found_in(folder)]
        alone = [name for name in names if "?" not in name]  # behind a question mark, a name is no name
        tails = [(name, tail) for name in alone for tail in _BESIDE if not name.endswith(_BESIDE)]
        tails += [(PurePosixPath(name).stem, tail) for name in alone for tail in _BESIDE_OTHERS
                  if not name.lower().endswith((*_TIFF, ".vrt", *_BESIDE))]  # fmt: skip
        there = [name + tail for name, tail in tails if self.file(f"{folder}/{name}{tail}") is not None]
        return sorted({*names, *there})

    def _found_in(self, folder: str) -> list[str]:
        with self._lock:
            return [url for url, file in self._files.items() if file is not None and url.rpartition("/")[0] == folder]

    def _opened(self, url: str) -> RemoteFile | None:
        is_first = not any(self._files.values())
        try:
            signed = self._access.secrets.queries.get(url)
            address = url if signed is None else f"{url}?{signed}"
            return RemoteFile(address, self._contact if is_first else self._client, self._threads)
        except (ServiceError, CredentialError):
            # An object store that does not list says of what is not there that it must not be read.
            if is_first or not self._is_beside(url):
                raise
            return None

    def _is_beside(self, url: str) -> bool:
        folder, _, name = url.rpartition("/")
        opened = (known.rpartition("/") for known, file in self._files.items() if file is not None)
        return any(place == folder and name.startswith(f"{PurePosixPath(known).stem}.") for place, _, known in opened)

    def read(self, file: RemoteFile, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Give parts of a file; raises as `RemoteFile.read`."""
        return self._told(lambda: file.read(ranges))

    def _told(self, action: Callable[[], T]) -> T:
        """Do something; after the first failure that ends the run, all others end at once and with that one."""
        if self._failure is not None:
            raise self._failure
        try:
            return action()
        except InferenceError as error:
            self._failure = self._failure or error
            raise self._failure from None
        except Canceled:
            if self._failure is None or self._access.is_cancelled():
                raise
            raise self._failure from None

    def refer(self, source: str, target: str) -> None:
        """Look at an address that a file holds, see `HttpClient.check_reference`."""
        for client in (self._client, self._contact):
            client.check_reference(source, target)

    def identity(self) -> list[Any] | None:
        """Give name and version of each file that was found; None where a server says nothing about versions."""
        with self._lock:
            found = sorted((url, file.version) for url, file in self._files.items() if file is not None)
        if not all(version.etag or version.modified for _, version in found):
            return None
        return [[url.partition("?")[0], version.size, version.etag, version.modified] for url, version in found]

    def close(self) -> None:
        """Let go of the connections; nobody may be reading."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        self._contact.close()


class ThreadFiles(MultiByteRangeResourceContainer):  # type: ignore[misc]
    """GDAL's way to the files, of one thread.

    Args:
        files: What the threads share.
    """

    def __init__(self, files: RemoteFiles) -> None:
        """Make the prefix of this thread, which lives as long as this object is not closed."""
        self._files = files
        self._failure: Exception | None = None
        self._prefix = ""
        self._anchor = rasterio.open(_ANCHOR, opener=self)
        self._prefix = self._anchor.name[: -len(_ANCHOR)]

    def name_of(self, source: str) -> str:
        """Give the name by which GDAL opens a source here: its own, with this thread's prefix."""
        if CURL in source:
            return source.replace(CURL, self._prefix)
        return f"{self._prefix}{_LOCAL}{Path(source).absolute().as_posix()}"

    def look_at(self, name: str) -> None:
        """Get to know a file by GDAL's name, which may have been read not at all so far; others are passed over."""
        path = name[len(self._prefix) :] if name.startswith(self._prefix) else ""
        if _is_url(path):
            self._found(path)

    def raise_failure(self) -> None:
        """Raise what went wrong since the last call, whatever GDAL made of it."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def keep_failure(self, failure: Exception) -> None:
        """Remember what GDAL cannot be told."""
        self._failure = self._failure or failure

    def close(self) -> None:
        """Give the prefix back."""
        self._anchor.close()

    # -- What rasterio asks for GDAL -----------------------------------------------------------------------------------

    def open(self, path: str, mode: str = "r", **_options: Any) -> Any:
        """Open a file for reading.

        Raises:
            FileNotFoundError: there is none, or it cannot be read.
        """
        if path == _ANCHOR:
            return _OpenBytes(_ANCHOR_TEXT)
        if path.startswith(_LOCAL):
            content = Path(path[len(_LOCAL) :])
            if content.suffix.lower() == ".vrt":
                return _OpenBytes(self._own_names(content.read_bytes()))
            return _OpenBytes(content.read_bytes())
        if not _is_url(path):
            raise FileNotFoundError(path)
        file = self._found(path)
        if file is None:
            raise FileNotFoundError(path)
        try:
            start = self._files.read(file, [(0, _START)])[0]
            if not refers_to_others(start) or (path.endswith(_BESIDE) and start.lstrip().startswith(b"<PAMDataset")):
                return _OpenFile(self, self._files, file)
            if MARK not in start:
                raise _no_raster(path)
            vrt = self._files.read(file, [(0, min(file.size, _LONGEST_VRT))])[0]
            return _OpenBytes(own_names(vrt, path, self._prefix, lambda url: self._files.refer(path, url)))
        except (InferenceError, Canceled) as failure:
            self.keep_failure(failure)
            raise FileNotFoundError(path) from failure

    def _own_names(self, vrt: bytes) -> bytes:
        return vrt.replace(CURL.encode(), self._prefix.encode())

    def _found(self, path: str) -> RemoteFile | None:
        try:
            return self._files.file(path)
        except (InferenceError, Canceled) as failure:
            self.keep_failure(failure)
            return None

    def isfile(self, path: str) -> bool:
        """Tell whether there is such a file."""
        return path == _ANCHOR or path.startswith(_LOCAL) or (_is_url(path) and self._found(path) is not None)

    def isdir(self, path: str) -> bool:
        """Say no: servers do not tell."""
        return False

    def ls(self, path: str) -> list[str]:
        """Give what stands beside the files that were opened in a folder, as far as GDAL has a use for it."""
        try:
            return self._files.beside(path) if _is_url(path) else []
        except (InferenceError, Canceled) as failure:
            self.keep_failure(failure)
            return []

    def mtime(self, path: str) -> int:
        """Give no time."""
        return 0

    def rm(self, path: str) -> None:
        """Remove nothing."""
        raise PermissionError(path)

    def size(self, path: str) -> int:
        """Give a file's length in bytes."""
        with self.open(path) as file:
            return int(file.seek(0, os.SEEK_END))


class _OpenBytes(io.BytesIO):
    """A file that is in memory."""

    def get_byte_ranges(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        """Give several parts."""
        content = self.getbuffer()
        return [bytes(content[offset : offset + size]) for offset, size in zip(offsets, sizes)]


class _OpenFile:
    """A remote file that GDAL has opened."""

    def __init__(self, owner: ThreadFiles, files: RemoteFiles, file: RemoteFile) -> None:
        self._owner, self._files, self._file, self._place = owner, files, file, 0

    def __enter__(self) -> _OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: the file stays known."""

    def tell(self) -> int:
        """Give the place of the next byte."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Give the next bytes; none where that failed, which is kept for whoever called GDAL."""
        end = self._file.size if size < 0 else min(self._place + size, self._file.size)
        content = self.get_byte_ranges([self._place], [max(end - self._place, 0)])[0]
        self._place += len(content)
        return content

    def get_byte_ranges(self, offsets: list[int], sizes: list[int]) -> list[bytes]:
        """Give several parts, all at once."""
        ranges = [(offset, offset + size) for offset, size in zip(offsets, sizes)]
        try:
            return self._files.read(self._file, ranges)
        except (InferenceError, Canceled) as failure:
            self._owner.keep_failure(failure)
            return [b""] * len(ranges)

    def close(self) -> None:
        """Do nothing: the file stays known."""


def _no_raster(url: str) -> RasterOpenError:
    return RasterOpenError(
        f"'{shown(url)}' is no raster but a description, in XML or JSON, of data that lie elsewhere.",
        hint="Add those data themselves; or download the description, look at it, and open it from your disk.",
    )


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))
