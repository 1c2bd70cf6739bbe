"""What an .onnx file says of itself: inputs, outputs and metadata, read with the standard library alone.

Weights are skipped, not read: a graph of gigabytes is looked through in a moment.

Source:
    onnx.proto of the ONNX project, and the encoding of Protocol Buffers: each field is a varint of its number and its
    wire type, and then a varint, 8 bytes, a length with so many bytes, or 4 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Union

from ..errors import ModelPackageError

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_MODEL_PRODUCER, _MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA = 2, 7, 8, 14
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT = 5, 11, 12
_TENSOR_NAME = 8
_MAX_TEXT = 2**20  # of a name or an entry of the metadata
_MAX_TEXTS = 2**24  # of all of them together
_MAX_RANK = 16
_MAX_VALUES = 10_000
_MAX_FIELDS = 2_000_000
"""Of the whole file: large graphs have some ten thousand nodes and weights."""
_VARINT_BITS = 70

ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""Types of a tensor's elements, as numpy calls them."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph: its name, the type of its elements, and its axes, None where they are free.

    A shape of None: the graph does not tell even the number of axes.
    """

    name: str
    dtype: str
    shape: tuple[Union[int, None], ...] | None

    def __str__(self) -> str:
        """Give it as messages show it."""
        axes = "any shape" if self.shape is None else "[" + ", ".join("?" if a is None else str(a) for a in self.shape)
        return f"{self.name} {self.dtype} {axes}" + ("" if self.shape is None else "]")


@dataclass(frozen=True)
class OnnxFacts:
    """What an .onnx file says of itself."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    producer: str = ""


def read_onnx(stream: IO[bytes], name: str) -> OnnxFacts:
    """Read what a graph takes and gives, and its metadata.

    Args:
        stream: The open file, which can be sought in.
        name: Its name, for messages.

    Raises:
        ModelPackageError: it is no ONNX model.
    """
    try:
        facts = _model(_Message(stream, stream.seek(0, os.SEEK_END)))
    except (_MalformedError, UnicodeDecodeError) as error:
        raise _no_model(name) from error
    if not facts.outputs:
        raise _no_model(name)
    return facts


def _no_model(name: str) -> ModelPackageError:
    return ModelPackageError(f"The file '{name}' is not an ONNX model.", hint="Copy or download it again.")


class _MalformedError(Exception):
    """The bytes are no message."""


class _Message:
    """A message that is read field by field from the stream, from `start` to `end`.

    `left` counts down the fields that may still be read, of all messages of a file together.
    """

    def __init__(self, stream: IO[bytes], end: int, start: int = 0, left: list[int] | None = None) -> None:
        self.stream, self.start, self.end = stream, start, end
        self.left = [_MAX_FIELDS] if left is None else left

    def fields(self) -> Iterator[tuple[int, int, int]]:
        """Give number, place and length of each field of bytes; number, value and -1 of each other one."""
        place = self.start
        while place < self.end:
            self.stream.seek(place)
            key, place = self._varint(place)
            kind = key & 7
            self.left[0] -= 1
            if key >> 3 == 0 or self.left[0] < 0:
                raise _MalformedError
            if kind == _BYTES:
                length, place = self._varint(place)
                if length > self.end - place:
                    raise _MalformedError
                yield key >> 3, place, length
                place += length
            elif kind == _VARINT:
                value, place = self._varint(place)
                yield key >> 3, value, -1
            elif kind in (_EIGHT, _FOUR):
                place += 8 if kind == _EIGHT else 4
            else:
                raise _MalformedError

    def _varint(self, place: int) -> tuple[int, int]:
        value, shift = 0, 0
        while shift < _VARINT_BITS:
            byte = self.stream.read(1)
            if not byte or place >= self.end:
                raise _MalformedError
            value |= (byte[0] & 0x7F) << shift
            shift, place = shift + 7, place + 1
            if byte[0] < 0x80:
                return value, place
        raise _MalformedError

    def inner(self, place: int, length: int) -> _Message:
        if length < 0:
            raise _MalformedError
        return _Message(self.stream, place + length, place, self.left)

    def text(self, place: int, length: int) -> str:
        if not 0 <= length <= _MAX_TEXT:
            raise _MalformedError
        self.stream.seek(place)
        return self.stream.read(length).decode("utf-8")

    def texts(self, *numbers: int) -> list[str]:
        """Give the last text under each of some numbers, empty where there is none."""
        found = dict.fromkeys(numbers, "")
        for number, place, length in self.fields():
            if number in found:
                found[number] = self.text(place, length)
        return list(found.values())


def _model(message: _Message) -> OnnxFacts:
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    metadata: dict[str, str] = {}
    producer, n_bytes = "", 0
    for number, place, length in message.fields():
        if number == _MODEL_GRAPH:
            inputs, outputs = _graph(message.inner(place, length))
        elif number == _MODEL_METADATA:
            key, value = message.inner(place, length).texts(1, 2)
            n_bytes += length
            if n_bytes > _MAX_TEXTS:
                raise _MalformedError
            metadata[key] = value
        elif number == _MODEL_PRODUCER:
            producer = message.text(place, length)
    return OnnxFacts(inputs, outputs, metadata, producer)


def _graph(message: _Message) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    inputs: list[TensorInfo] = []
    outputs: list[TensorInfo] = []
    weights: set[str] = set()
    for number, place, length in message.fields():
        if number == _GRAPH_INITIALIZER:
            weights.update(message.inner(place, length).texts(_TENSOR_NAME))
        elif number in (_GRAPH_INPUT, _GRAPH_OUTPUT):
            (inputs if number == _GRAPH_INPUT else outputs).append(_value(message.inner(place, length)))
        if len(inputs) + len(outputs) > _MAX_VALUES:
            raise _MalformedError
    # Graphs of the first versions name their weights among the inputs.
    return tuple(item for item in inputs if item.name not in weights), tuple(outputs)


def _value(message: _Message) -> TensorInfo:
    name, dtype, shape = "", "", None
    for number, place, length in message.fields():
        if number == 1:
            name = message.text(place, length)
        elif number == 2:
            for kind, start, n_bytes in message.inner(place, length).fields():
                if kind == 1:
                    dtype, shape = _tensor_type(message.inner(start, n_bytes))
    return TensorInfo(name, dtype or "no tensor", shape)


def _tensor_type(message: _Message) -> tuple[str, tuple[Union[int, None], ...] | None]:
    dtype, shape = "no known type", None
    for number, value, length in message.fields():
        if number == 1 and length < 0:
            dtype = ELEMENT_TYPES.get(value, dtype)
        elif number == 2:
            axes = message.inner(value, length)
            shape = tuple(_axis(axes.inner(start, n)) for kind, start, n in axes.fields() if kind == 1)
            if len(shape) > _MAX_RANK:
                raise _MalformedError
    return dtype, shape


def _axis(message: _Message) -> int | None:
    for number, value, length in message.fields():
        if number == 1 and length < 0:
            return value if 0 < value < 2**31 else None
    return None
