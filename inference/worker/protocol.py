"""The language between QGIS and the worker.

Worker to QGIS, on the worker's stdout: one event (events.py) a line, as JSON in ASCII.
QGIS to worker, on its stdin: control.py.

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from ..errors import ProtocolError
from ..events import WorkerEvent, event_from_dict, event_to_dict

MAX_LINE = 2**20
"""Bytes of the longest line, with its end."""

_NUMBER_OR_NONE = (int, float, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "pid": int,
    "versions": dict,
    "level": str,
    "id": str,
    "text": str,
    "done": int,
    "total": int,
    "objects": int,
    "rate": _NUMBER_OR_NONE,
    "remaining": _NUMBER_OR_NONE,
    "path": str,
    "count": int,
    "summary": dict,
    "error": dict,
    "request": int,
    "source": str,
    "extent": list,
    "width": int,
    "height": int,
    "again": int,
}
"""What each member of an event may be."""


def write_event(stream: BinaryIO, event: WorkerEvent) -> None:
    """Write an event as one line, and send it off.

    Raises:
        ProtocolError: the event is not plain finite JSON, or too long.
        OSError: nobody reads any more.
    """
    stream.write(encode_event(event))
    stream.flush()


def encode_event(event: WorkerEvent) -> bytes:
    """Give the line that `write_event` writes.

    Raises:
        ProtocolError: as `write_event`.
    """
    try:
        line = json.dumps(event_to_dict(event), allow_nan=False).encode("ascii") + b"\n"
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"The event '{event.type}' cannot be sent: {error}.") from error
    if len(line) > MAX_LINE:
        raise ProtocolError(f"The event '{event.type}' is too long to be sent: {len(line)} bytes.")
    return line


def read_event(line: bytes) -> WorkerEvent:
    """Read one line.

    Raises:
        ProtocolError: whatever is wrong with it.
    """
    if len(line) > MAX_LINE:
        raise ProtocolError("The worker sent a message that is too long.")
    try:
        data = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"The worker sent something that is not a message: {line[:200]!r}") from error
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise ProtocolError(f"The worker sent something that is not a message: {line[:200]!r}")
    _check_types(data)
    return event_from_dict(data)


def _check_types(data: dict[str, Any]) -> None:
    for name, value in data.items():
        if not isinstance(value, _TYPES.get(name, object)):
            raise ProtocolError(f"The worker sent a message whose '{name}' cannot be {str(value)[:200]}.")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
