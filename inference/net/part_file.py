"""A download on its way into its place: `<name>.part`, and beside it what it is a part of.

<name>.part         the bytes so far
<name>.part.json    the URL (without query), length, and the validator (ETag or date) that the server gave
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import DiskFullError, OutputError, ServiceError

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_BLOCK = 1024 * 1024
_LOCKED_BYTE = 2**40
"""Beyond any download's end: Windows locks bytes, and those of the file itself are to be read."""


class PartFile:
    """The file of one download; a context manager that closes it and keeps what it has.

    Args:
        target: Where the file goes once it is whole.
        name: What is downloaded, without secrets: a part of something else is thrown away.
    """

    def __init__(self, target: Path, name: str) -> None:
        self._target, self._name = target, name
        self._path = target.with_name(target.name + ".part")
        self._facts_path = target.with_name(target.name + ".part.json")
        self._file: BinaryIO | None = None
        self._validator = ""
        self._total: int | None = None
        self._furthest = 0
        self.size = 0

    def __enter__(self) -> PartFile:
        """Open what an earlier call left, where it can be gone on with."""
        with _told(self._path):
            self._file = _locked(self._path)
            facts = self._facts()
            self._validator, self._total = facts.get("validator", ""), facts.get("total")
            self.size = self._file.seek(0, os.SEEK_END)
            if not self._validator:
                self._restart()
            self._furthest = self.size
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; an empty part goes."""
        if self._file is None:
            return
        if self.size == 0:
            self._remove()
        self._file.close()
        self._file = None

    @property
    def is_whole(self) -> bool:
        """Tell whether as many bytes are there as the server said; True where it said nothing."""
        return self._total is None or self.size == self._total

    def gained(self) -> bool:
        """Tell whether more is there than ever before, since this was last asked."""
        before, self._furthest = self._furthest, max(self._furthest, self.size)
        return self._furthest > before

    def range_headers(self) -> dict[str, str]:
        """Give the headers that ask for the rest, if the file is still the same."""
        if not self.size or not self._validator:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._validator}

    def begin(self, status: int, headers: Mapping[str, str]) -> int | None:
        """Get ready for the body of an answer, and give the whole length where it is known.

        Raises:
            ServiceError: the answer does not go on where the part ends.
        """
        with _told(self._path):
            place = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
            fits = place is not None and int(place[1]) == self.size and place[3] in ("*", str(self._total))
            if status == 206 and fits:
                return self._total
            self._restart()
            if status != 200:
                raise ServiceError(f"The server's answer does not go on where the download of '{self._name}' ended.")
            length, packed = headers.get("Content-Length", ""), headers.get("Content-Encoding", "identity")
            if packed.lower() == "identity":  # of packed bytes neither the length nor the validator is the file's
                self._total = int(length) if length.isdigit() else None
                self._validator = _validator(headers)
            facts = {"name": self._name, "validator": self._validator, "total": self._total}
            self._facts_path.write_text(json.dumps(facts), encoding="utf-8")
        return self._total

    def write(self, chunk: bytes) -> None:
        """Add bytes."""
        with _told(self._path):
            self._opened().write(chunk)
        self.size += len(chunk)

    def beginning(self) -> bytes:
        """Give the first bytes, of a short file all of them."""
        with _told(self._path):
            file = self._opened()
            file.seek(0)
            start = file.read(_BLOCK)
            file.seek(0, os.SEEK_END)
        return start

    def discard(self) -> None:
        """Throw away what came: it is not the file."""
        with _told(self._path):
            self._restart()

    def finish(self) -> str:
        """Put the whole file in its place, and give its SHA-256 in hex: of what is on the disk."""
        with _told(self._path):
            file = self._opened()
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hash_of(file)
            file.close()
            self._file = None
            self._path.replace(self._target)
            self._facts_path.unlink(missing_ok=True)
        return digest

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the part file is closed")
        return self._file

    def _restart(self) -> None:
        self._opened().seek(0)
        self._opened().truncate()
        self.size, self._validator, self._total = 0, "", None

    def _facts(self) -> dict[str, Any]:
        try:
            facts = json.loads(self._facts_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) and facts.get("name") == self._name else {}

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self._facts_path.unlink(missing_ok=True)


def _locked(path: Path) -> BinaryIO:
    """Open a part that no other run writes to."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        file = os.fdopen(os.open(path, flags, 0o600), "r+b")
        if not _lock(file):
            file.close()
            raise OutputError(
                f"The file {path} is being downloaded by another run.", hint="Start again when that run has it."
            )
        # The other run may have moved it to its place between the two steps.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _lock(file: BinaryIO) -> bool:
    """Take the system's lock on a file, which ends with its handle; False where another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
    return True


def hash_of(file: BinaryIO) -> str:
    """Give the SHA-256 of an open file, from where it stands, in hex."""
    digest = hashlib.sha256()
    while True:
        block = file.read(_BLOCK)
        if not block:
            return digest.hexdigest()
        digest.update(block)


def _validator(headers: Mapping[str, str]) -> str:
    """Give what tells the server whether the file is still the same: a strong ETag, else its date.

    Source: RFC 9110, 13.1.5: a weak ETag must not stand in If-Range.
    """
    etag = headers.get("ETag", "").strip()
    return etag if etag.startswith('"') else headers.get("Last-Modified", "").strip()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"The disk of {path.parent} is full.", hint="Make room, then start again.") from error
        raise OutputError(f"The file {path} cannot be written: {error.strerror or error}.") from error
