"""The language between the worker and the process that runs a package's program: frames, both ways, through pipes.

    4 bytes     length of the header, big-endian
    header      JSON object: `type`, members of its own, and `arrays`, a list of {name, dtype, shape}
    arrays      their bytes, in the order of the list, in the machine's own byte order

Worker to host: start, block, end. Host to worker: ready, found, error. Nothing is pickled, and everything has a limit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import ProtocolError

RAW = "raw:"
"""How the names of arrays begin that are a network's bare output."""
MAX_HEADER = 2**20
MAX_ARRAYS = 16
MAX_BYTES = 2**31
"""Bytes of all arrays of a frame together."""

_LENGTH = struct.Struct(">I")
_MAX_DIMENSIONS = 4
_DTYPES = frozenset(
    "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 float32 float64 complex64 complex128".split()
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One message."""

    type: str
    members: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def write_frame(stream: BinaryIO, frame: Frame) -> None:
    """Write a frame, and send it off.

    Raises:
        ProtocolError: it is not plain finite JSON, or larger than allowed.
        OSError: nobody reads any more.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in frame.arrays.items()}
    described = [{"name": n, "dtype": a.dtype.name, "shape": list(a.shape)} for n, a in arrays.items()]
    try:
        text = json.dumps({**frame.members, "type": frame.type, "arrays": described}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ProtocolError(f"The message '{frame.type}' cannot be sent: {error}.") from error
    header = text.encode("ascii")
    if len(header) > MAX_HEADER:
        raise ProtocolError(f"The message '{frame.type}' is too long to be sent: {len(header)} bytes.")
    for item in described:
        _checked_array(item)
    if sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
        raise ProtocolError(f"The arrays of the message '{frame.type}' are too large to be sent.")
    stream.write(_LENGTH.pack(len(header)) + header)
    for array in arrays.values():
        stream.write(array.reshape(-1).view(np.uint8).data if array.size else b"")
    stream.flush()


def read_frame(stream: BinaryIO) -> Frame | None:
    """Read a frame; None at the end of the stream. Its arrays can be written to.

    Raises:
        ProtocolError: whatever is wrong with it, an end in its middle too.
    """
    start = stream.read(_LENGTH.size)
    if not start:
        return None
    if len(start) < _LENGTH.size:
        raise ProtocolError("A message between worker and host ends in its middle.")
    length = _LENGTH.unpack(start)[0]
    if length > MAX_HEADER:
        raise ProtocolError(f"A message between worker and host is too long: {length} bytes.")
    members = _header(_exactly(stream, length))
    described = [_checked_array(item) for item in members.pop("arrays")]
    if sum(n_bytes for *_, n_bytes in described) > MAX_BYTES:
        raise ProtocolError("The arrays of a message between worker and host are too large.")
    arrays = {}
    for name, dtype, shape, n_bytes in described:
        arrays[name] = np.frombuffer(_exactly(stream, n_bytes), dtype).reshape(shape)
    return Frame(members.pop("type"), members, arrays)


def _header(data: bytearray) -> dict[str, Any]:
    try:
        members = json.loads(data.decode("ascii"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"A message between worker and host cannot be read: {bytes(data[:200])!r}") from error
    is_frame = isinstance(members, dict) and isinstance(members.get("type"), str)
    if not is_frame or not isinstance(members.get("arrays"), list) or len(members["arrays"]) > MAX_ARRAYS:
        raise ProtocolError(f"A message between worker and host cannot be read: {bytes(data[:200])!r}")
    return dict(members)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _checked_array(item: Any) -> tuple[str, np.dtype[Any], list[int], int]:
    """Give name, type, shape and size in bytes of an array that a header announces."""
    item = item if isinstance(item, dict) else {}
    name, dtype, shape = item.get("name"), item.get("dtype"), item.get("shape")
    is_shape = isinstance(shape, list) and len(shape) <= _MAX_DIMENSIONS
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in _DTYPES or not is_shape:
        raise ProtocolError(f"A message between worker and host holds an array that cannot be: {str(item)[:200]}")
    if not all(type(side) is int and 0 <= side <= MAX_BYTES for side in shape):
        raise ProtocolError(f"A message between worker and host holds an array that cannot be: {str(item)[:200]}")
    return name, np.dtype(dtype), shape, math.prod(shape) * np.dtype(dtype).itemsize


def _exactly(stream: BinaryIO, n_bytes: int) -> bytearray:
    """Read so many bytes, into memory that can be written to."""
    data = bytearray(n_bytes)
    view, n_read = memoryview(data), 0
    while n_read < n_bytes:
        part = stream.readinto(view[n_read:])  # type: ignore[attr-defined]
        if not part:
            raise ProtocolError("A message between worker and host ends in its middle.")
        n_read += part
    return data
