"""Zip archives whose members are plainly stored, as PyTorch writes them: a strict look at the directory.

Python's own zipfile builds some 600 bytes for each entry before anybody can say stop, and looks neither for members
that overlap nor for names that are there twice. Here a hostile directory costs little more than it has bytes.

Source: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.7 to 4.3.16.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO

from .stack_machine import MAX_TENSORS, MalformedError

_MAX_MEMBERS = MAX_TENSORS + 1000
_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FIELD = struct.Struct("<2H")
_WIDE_FIELD = 1
"""Extra field that holds numbers of 64 bits."""
_MAX_DIRECTORY_BYTES = 16 * 2**20
_MAX_COMMENT = 2**16
_FULL_32 = 2**32 - 1


@dataclass(frozen=True)
class Record:
    """A member of the archive: its own header, its size, and where the next thing begins."""

    header: int
    size: int
    end: int


def read_directory(stream: IO[bytes], size: int) -> tuple[dict[str, tuple[int, int, bool]], int]:
    """Give header offset, size and "plainly stored" of each member, and where the directory begins.

    Raises:
        MalformedError: no such directory, or one too long to be honest.
    """
    n_entries, directory_size, start = end_of_directory(stream, size)
    if n_entries > _MAX_MEMBERS or directory_size > _MAX_DIRECTORY_BYTES:
        raise MalformedError(f"its archive lists {n_entries} members")
    if start + directory_size > size:
        raise MalformedError("its end is missing")
    stream.seek(start)
    entries: dict[str, tuple[int, int, bool]] = {}
    for _ in range(n_entries):
        (signature, _, _, flags, method, _, _, _, packed, unpacked, n_name, n_extra, n_comment, _, _, _, header) = (
            _ENTRY.unpack(stream.read(_ENTRY.size))
        )
        if signature != b"PK\x01\x02":
            raise MalformedError("its archive's directory is broken")
        name = stream.read(n_name).decode("utf-8", "replace").replace("\\", "/")
        unpacked, packed, header = _large_values(stream.read(n_extra), unpacked, packed, header)
        stream.seek(n_comment, os.SEEK_CUR)
        if name in entries:
            raise MalformedError(f"its archive holds the member '{name[:80]}' twice")
        if not name.endswith("/"):
            entries[name] = header, unpacked, method == 0 and packed == unpacked and not flags & 1
    return entries, start


def end_of_directory(stream: IO[bytes], size: int) -> tuple[int, int, int]:
    """Give what an archive's end says of its directory: the number of entries, its size in bytes, and its place.

    Raises:
        MalformedError: it has no end.
    """
    tail_at = max(size - _END.size - _MAX_COMMENT - _END_64_LOCATOR.size, 0)
    stream.seek(tail_at)
    tail = stream.read(size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise MalformedError("its end is missing")
    _, _, _, _, n_entries, directory_size, start, _ = _END.unpack_from(tail, at)
    locator = tail[max(at - _END_64_LOCATOR.size, 0) : at]
    if len(locator) < _END_64_LOCATOR.size or not locator.startswith(b"PK\x06\x07"):
        return n_entries, directory_size, start
    _, _, end_at, _ = _END_64_LOCATOR.unpack(locator)
    if end_at != tail_at + at - _END_64_LOCATOR.size - _END_64.size:
        # Python's zipfile takes the record at this place whatever the locator says: one look at two directories.
        raise MalformedError("its archive's directory is broken")
    stream.seek(end_at)
    signature, _, _, _, _, _, _, n_entries, directory_size, start = _END_64.unpack(stream.read(_END_64.size))
    if signature != b"PK\x06\x06":
        raise MalformedError("its archive's directory is broken")
    return n_entries, directory_size, start


def _large_values(extra: bytes, *values: int) -> list[int]:
    """Give an entry's numbers, taking from its extra field those that do not fit into 32 bits."""
    wide: list[int] = []
    at = 0
    while at + _FIELD.size <= len(extra):
        tag, length = _FIELD.unpack_from(extra, at)
        at += _FIELD.size
        if tag == _WIDE_FIELD:
            field = extra[at : at + min(length, 8 * len(values))]
            wide = [value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8])]
        at += length
    return [wide.pop(0) if value == _FULL_32 and wide else value for value in values]


def checked_records(entries: Mapping[str, tuple[int, int, bool]], start_of_directory: int) -> dict[str, Record]:
    """Give the members, where none has bytes of another one or of the directory.

    Raises:
        MalformedError: one has, or is compressed or encrypted.
    """
    records, end = {}, start_of_directory
    for name, (header, size, is_stored) in sorted(entries.items(), key=lambda item: item[1][0], reverse=True):
        if not is_stored:
            raise MalformedError(f"its member '{name[:80]}' is compressed or encrypted, which torch.save never does")
        if header + _LOCAL.size + size > end:
            raise MalformedError(f"its member '{name[:80]}' overlaps what comes after it")
        records[name] = Record(header, size, end)
        end = header
    return records


def place_of(stream: IO[bytes], records: Mapping[str, Record], name: str) -> int:
    """Give the place of a member's first byte, behind its own header.

    Raises:
        MalformedError: the header says something else than the directory.
    """
    record = records[name]
    stream.seek(record.header)
    signature, _, flags, method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    own_name = stream.read(n_name).decode("utf-8", "replace").replace("\\", "/")
    place: int = record.header + _LOCAL.size + n_name + n_extra
    if signature != b"PK\x03\x04" or method != 0 or flags & 1 or own_name != name or place + record.size > record.end:
        raise MalformedError(f"its member '{name[:80]}' is not where the archive's directory says")
    return place
