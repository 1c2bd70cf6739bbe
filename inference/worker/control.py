"""The language from QGIS to the worker, on the worker's stdin: lines, some of which bytes follow.

    {"type": "secrets", ...}     the first one, see secrets.py
    cancel                       the run is to end
    {"type": "pixels", "request": 7, "dtype": "uint8", "shape": [3, 512, 512], ..., "bytes": [786432, 262144]}
                                 the answer to a request; the pixels and their cover follow the line
    {"type": "pixels", "request": 8, "error": "..."}
                                 the answer where there are no pixels

End of file means that QGIS is gone. Nothing is pickled, and everything has a limit.

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Union

from ..errors import ProtocolError
from ..pictures import MAX_BYTES, Picture
from ..secrets import Secrets

CANCEL = b"cancel\n"
MAX_LINE = 2**22
"""Bytes of the longest line: certificates and many credentials fit."""


@dataclass(frozen=True)
class CancelWish:
    """The run is to end."""


@dataclass(frozen=True, eq=False)
class PixelsAnswer:
    """The answer to a request for pixels: a picture, or why there is none."""

    request: int
    picture: Picture | None = None
    error: str = ""


ControlMessage = Union[Secrets, CancelWish, PixelsAnswer]


def encode_secrets(secrets: Secrets) -> bytes:
    """Give the first line.

    Raises:
        ProtocolError: there are more than a line takes.
    """
    return _line(secrets.to_dict())


def encode_answer(answer: PixelsAnswer) -> list[bytes]:
    """Give an answer's parts, to be written one after the other.

    Raises:
        ProtocolError: the reason for an error is too long.
    """
    picture = answer.picture
    if picture is None:
        return [_line({"type": "pixels", "request": answer.request, "error": answer.error})]
    header = {
        "type": "pixels",
        "request": answer.request,
        "dtype": picture.dtype,
        "shape": list(picture.shape),
        "answered": picture.answered,
        "failures": picture.failures,
        "reason": picture.reason,
        "bytes": [len(picture.pixels), len(picture.cover)],
    }
    return [_line(header), picture.pixels, picture.cover]


def _line(data: dict[str, Any]) -> bytes:
    line = json.dumps(data, allow_nan=False).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise ProtocolError("A message to the worker is too long to be sent.")
    return line


class ControlReader:
    """Puts messages together from bytes as they come."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._pending = bytearray()
        self._header: dict[str, Any] | None = None

    @property
    def is_inside(self) -> bool:
        """Tell whether a message has begun and is not whole: the rest of it is on its way."""
        return self._header is not None or bool(self._pending)

    def feed(self, data: bytes) -> Iterator[ControlMessage]:
        """Take the next bytes, and give the messages that are whole with them.

        Raises:
            ProtocolError: they are no messages. The text does not repeat them: they may be secret.
        """
        self._pending += data
        while True:
            message = self._payload() if self._header is not None else self._next_line()
            if message is None:
                return
            if not isinstance(message, dict):
                yield message

    def _next_line(self) -> ControlMessage | dict[str, Any] | None:
        """Give the next message, the header of one whose bytes follow, or None where the line is not whole."""
        end = self._pending.find(b"\n", 0, MAX_LINE)
        if end < 0:
            if len(self._pending) >= MAX_LINE:
                raise ProtocolError("QGIS sent a message that is too long.")
            return None
        line = bytes(self._pending[: end + 1])
        del self._pending[: end + 1]
        if line == CANCEL:
            return CancelWish()
        try:
            data = json.loads(line)
            kind = data["type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ProtocolError("QGIS sent something that is not a message.") from None
        if kind == Secrets.type:
            return Secrets.from_dict(data)
        if kind != "pixels" or not isinstance(data.get("request"), int):
            raise ProtocolError("QGIS sent something that is not a message.")
        if "error" in data:
            return PixelsAnswer(data["request"], error=str(data["error"]))
        _check_sizes(data.get("bytes"))
        self._header = dict(data)
        return self._header

    def _payload(self) -> ControlMessage | None:
        """Give the picture whose header has come, None where its bytes are not all there."""
        header = self._header or {}
        n_pixels, n_cover = header["bytes"]
        if len(self._pending) < n_pixels + n_cover:
            return None
        view = memoryview(self._pending)
        pixels, cover = bytes(view[:n_pixels]), bytes(view[n_pixels : n_pixels + n_cover])
        view.release()
        del self._pending[: n_pixels + n_cover]
        self._header = None
        try:
            n_bands, height, width = (int(side) for side in header["shape"])
            facts = int(header["answered"]), int(header["failures"]), str(header["reason"])
            picture = Picture(str(header["dtype"]), (n_bands, height, width), pixels, cover, *facts)
        except (KeyError, TypeError, ValueError):
            raise ProtocolError("QGIS sent a picture that cannot be understood.") from None
        return PixelsAnswer(header["request"], picture)


def _check_sizes(sizes: Any) -> None:
    is_pair = isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size >= 0 for size in sizes)
    if not is_pair or sum(sizes) > MAX_BYTES:
        raise ProtocolError("QGIS sent a picture that is too large.")
