"""PyTorch checkpoints (.pth, .pt) as data: the names and tensors of a state dict, and nothing else that a file holds.

A checkpoint is a pickle with the tensors' numbers behind it, in one of two containers. The pickle runs on a machine of
our own that calls nothing (stack_machine.py): optimizers, schedules, numpy scalars and whole modules become stubs.

    container                  pickle                           numbers
    zip (torch 1.6 and later)  member data.pkl                  one member a storage, not compressed
    legacy (before 1.6)        the fourth of five in a row      behind them: count and numbers, storage by storage

All that a file claims (sizes, counts, offsets, strides) is checked against the file before memory is taken for it, and
the numbers are read tensor by tensor, when they are asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import ModelError, ModelPackageError, ModelUnsupportedError, UntrustedCodeError
from .stack_machine import (
    DTYPES,
    MALFORMED,
    NO_DATA,
    Machine,
    MalformedError,
    PickledMapping,
    PickledTensor,
    Storage,
    Stream,
    Stub,
    UnreadTensor,
    contiguous,
    n_elements,
    n_spanned,
)
from .stored_zip import Record, checked_records, place_of, read_directory

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PICKLE_BYTES = 64 * 2**20
EXPANSION = (4, 64 * 2**20)
"""Tensors may take this many times the file's size, or this many bytes: views share numbers, copies do not."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "ema")
"""Names under which programs for training keep the state dict beside other things."""
_SAVE_AGAIN = "Save the state dict alone: torch.save(model.state_dict(), 'weights.pth'), best as safetensors."
_EXPORTS = (
    ("ultralytics.", "yolo export model={name} format=onnx"),
    ("models.yolo.", "python export.py --weights {name} --include onnx"),
    ("models.experimental.", "python export.py --weights {name} --include onnx"),
)
"""How the names of pickled networks begin whose own program exports them with one command: Ultralytics, YOLOv5."""
_NOT_RUN = "Kestrel does not run programs from packages"


@dataclass(frozen=True)
class CheckpointTensor:
    """A tensor of a checkpoint; its numbers stay in the file until `numpy` reads them.

    Attributes:
        dtype: torch's name of the type: float32, bfloat16, int64, ...
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    """Place of the first number in the file, in bytes."""
    stride: tuple[int, ...]
    """Steps along each axis, in numbers."""

    @property
    def nbytes(self) -> int:
        """Give the bytes that the tensor takes in memory."""
        return n_elements(self.shape) * DTYPES[self.dtype][1]

    def numpy(self) -> NDArray[Any]:
        """Read the numbers into an array of their own, in C order; bfloat16 as its bits in uint16.

        Raises:
            ModelPackageError: the file is gone, or shorter than it was.
        """
        import numpy as np

        code, itemsize = DTYPES[self.dtype]
        n = n_spanned(self.shape, self.stride)
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                numbers = np.fromfile(stream, code, n)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "the memory does not hold it"
            raise ModelPackageError(f"The tensor '{self.name}' cannot be read: {reason}.") from error
        if len(numbers) != n:
            raise ModelPackageError(f"The tensor '{self.name}' cannot be read: the file was cut off meanwhile.")
        if n == 0 or self.stride == contiguous(self.shape):
            array = numbers.reshape(self.shape)
        else:
            steps = [step * itemsize if size > 1 else 0 for size, step in zip(self.shape, self.stride)]
            array = np.lib.stride_tricks.as_strided(numbers, self.shape, steps, writeable=False).copy(order="C")
        return array != 0 if self.dtype == "bool" else array


def read_checkpoint(path: Path, name: str) -> dict[str, CheckpointTensor]:
    """Read the state dict of a checkpoint that torch.save wrote, in either of its containers.

    The state dict is the object itself, or what stands in it under "model", "state_dict", "model_state_dict", "net" or
    "ema". What else the file holds is passed over without a look at it.

    Args:
        path: The file, whatever its extension: its content decides.
        name: How messages call it.

    Raises:
        ModelPackageError: no such checkpoint, or a damaged one.
        ModelUnsupportedError: the weights of another library, or of a kind that cannot be read as numbers.
        UntrustedCodeError: the file holds a program (TorchScript, a whole pickled network).
    """
    with _translated(name), path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(512)
        if start.startswith(b"PK\x03\x04"):
            content, places = _read_zip(stream, size, name)
        elif start[:1] == b"\x80":
            content, places = _read_legacy(stream, size, name)
        else:
            raise _not_a_checkpoint(start, size, name)
        return _tensors_of(_state(content, name), places, path, size, name)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except MalformedError as error:
        raise _damaged(name, str(error)) from error
    except MALFORMED as error:
        raise _damaged(name, "its pickle makes no sense") from error
    except MemoryError as error:
        raise ModelPackageError(f"The memory does not hold the weights '{name}'.") from error
    except OSError as error:
        raise ModelPackageError(f"The weights '{name}' cannot be read: {error.strerror or error}.") from error


def _damaged(name: str, reason: str) -> ModelPackageError:
    return ModelPackageError(
        f"The weights '{name}' are damaged: {reason}.",
        hint=f"Copy or download the file again. {_SAVE_AGAIN}",
    )


# -- What else is called .pth ------------------------------------------------------------------------------------------

_FOREIGN: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "Fetch them with 'git lfs pull'."),
    (b"\x89HDF\r\n", "in HDF5, as Keras saves weights", "Kestrel reads PyTorch weights; export the model to ONNX."),
    (b"\x93NUMPY", "a numpy array, not a state dict", _SAVE_AGAIN),
    (b"\x1f\x8b", "compressed with gzip", "Unpack the file first."),
    (b"7z\xbc\xaf", "a 7-Zip archive", "Unpack it first."),
    (b"Rar!", "a RAR archive", "Unpack it first."),
    (b"%PDF", "a PDF document", "Choose the file with the weights."),
    (b"GGUF", "in GGUF, the form of language models", "Choose the weights of a detection model."),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_ONNX = tuple(b"\x08" + bytes([version, tag]) for version in range(2, 32) for tag in (0x12, 0x1A, 0x22, 0x3A))
"""An ONNX file starts with the version of its form, then producer, its version, domain or graph."""
_SAVED_MODEL = b"\x08\x01\x12"


def _not_a_checkpoint(start: bytes, size: int, name: str) -> ModelError:
    """Give the error for a file that torch.save did not write: what it is instead, and the way out."""
    for prefix, what, hint in _FOREIGN:
        if start.startswith(prefix):
            return ModelPackageError(f"The weights '{name}' are {what}.", hint=hint)
    if size == 0:
        return ModelPackageError(f"The file '{name}' is empty.", hint="Copy or download it again.")
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES):
        return ModelPackageError(
            f"The file '{name}' is a web page, not weights: what was downloaded is a server's answer.",
            hint="Download the file itself; the server may want a login, or a click on 'raw' or 'download'.",
        )
    if start[257:262] == b"ustar":
        return ModelPackageError(
            f"The weights '{name}' are in the tar container of PyTorch before 0.1.10, which Kestrel does not read.",
            hint="Open them with an old PyTorch that you trust, and save the state dict again.",
        )
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size:
        return ModelPackageError(
            f"The weights '{name}' are safetensors, not a PyTorch checkpoint.", hint="Let its name end in .safetensors."
        )
    if start[4:8] == b"TFL3" or start.startswith(_SAVED_MODEL) or _is_frozen_graph(start):
        return ModelUnsupportedError(
            f"The weights '{name}' are a TensorFlow model, not a PyTorch checkpoint.",
            hint="Set the definition's framework to TensorFlow, or export the model to ONNX.",
        )
    if start.startswith(_ONNX):
        return ModelPackageError(
            f"The weights '{name}' are an ONNX model, not a PyTorch checkpoint.",
            hint="Name the file .onnx, and set the definition's framework to ONNX.",
        )
    return ModelPackageError(f"The file '{name}' is no PyTorch checkpoint.", hint=_SAVE_AGAIN)


def _is_frozen_graph(start: bytes) -> bool:
    """Tell whether a file starts as TensorFlow's GraphDef does: a node, and in it its name and its operation."""
    at = start.find(b"\x12", 4, 100)
    operation = start[at + 2 : at + 2 + start[at + 1]] if 0 <= at < len(start) - 1 else b""
    return start[:1] == b"\x0a" and b"\x0a" in start[2:4] and operation in (b"Placeholder", b"Const", b"NoOp")


# -- The zip container -------------------------------------------------------------------------------------------------


def _read_zip(stream: IO[bytes], size: int, name: str) -> tuple[Any, dict[str, int]]:
    """Give the pickled object, and the place in the file of each storage's numbers."""
    directory, start_of_directory = read_directory(stream, size)
    _refuse_programs(directory, name)
    root = _root(directory, name)
    records = checked_records(directory, start_of_directory)
    _check_byte_order(stream, records, root, name)
    pickle = records[root + "data.pkl"]
    if pickle.size > MAX_PICKLE_BYTES:
        raise MalformedError(f"its pickle has {pickle.size} bytes")
    stream.seek(place_of(stream, records, root + "data.pkl"))
    machine = Machine(Stream(stream, pickle.size))
    content = machine.load()
    places = {}
    for key, storage in machine.storages.items():
        record = records.get(f"{root}data/{key}")
        if record is None:
            raise MalformedError(f"the numbers of storage '{key}' are missing")
        if record.size // storage.itemsize != storage.count:
            raise MalformedError(f"storage '{key}' should hold {storage.count} numbers, and has {record.size} bytes")
        places[key] = place_of(stream, records, f"{root}data/{key}")
    return content, places


def _refuse_programs(names: Mapping[str, Any], name: str) -> None:
    if any("/code/" in member or member.endswith(("/constants.pkl", "/code.pkl")) for member in names):
        raise UntrustedCodeError(
            f"The file '{name}' is TorchScript, which is a program, and {_NOT_RUN}.",
            hint=f"{_SAVE_AGAIN} Or export the model to ONNX.",
        )
    if any(member.endswith(".py") for member in names):
        raise UntrustedCodeError(f"The file '{name}' holds Python programs, and {_NOT_RUN}.", hint=_SAVE_AGAIN)


def _root(names: Mapping[str, Any], name: str) -> str:
    """Give the archive's own folder, which torch names after the file, with its slash."""
    roots = [member[: -len("data.pkl")] for member in names if member.endswith("/data.pkl") and member.count("/") == 1]
    if len(roots) == 1:
        return roots[0]
    if roots:
        raise MalformedError("its archive holds several pickles")
    holds = ", ".join(sorted(member[:40] for member in names)[:5])
    raise ModelPackageError(
        f"The file '{name}' is a zip archive, but no PyTorch checkpoint.",
        hint=f"It holds: {holds}." if holds else "It holds nothing.",
    )


def _check_byte_order(stream: IO[bytes], records: Mapping[str, Record], root: str, name: str) -> None:
    if root + "byteorder" not in records:
        return
    stream.seek(place_of(stream, records, root + "byteorder"))
    order = stream.read(min(records[root + "byteorder"].size, 16)).strip()
    if order != b"little":
        raise ModelUnsupportedError(
            f"The weights '{name}' were written with the byte order '{order.decode('ascii', 'replace')}'; Kestrel "
            "reads little endian.",
            hint="Save them again on a computer with an Intel, AMD or ARM processor.",
        )


# -- The legacy container ----------------------------------------------------------------------------------------------


def _read_legacy(stream: IO[bytes], size: int, name: str) -> tuple[Any, dict[str, int]]:
    """Give the pickled object, and the place in the file of each storage's numbers."""
    stream.seek(0)
    pickle = Stream(stream, min(size, MAX_PICKLE_BYTES))
    machine = Machine(pickle)
    if machine.load() != _MAGIC:
        raise ModelPackageError(
            f"The file '{name}' is a Python pickle that torch.save did not write.", hint=_SAVE_AGAIN
        )
    version = machine.load()
    if version != _PROTOCOL:
        raise MalformedError("it names an unknown version of its own form")
    machine.load()  # sizes of C types and the byte order of the computer; the numbers are little endian always
    content = machine.load()
    storages = machine.storages
    keys = machine.load()
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or set(keys) != set(storages) or len(keys) != len(storages):
        raise MalformedError("its list of storages does not fit")
    return content, _legacy_places(stream, pickle.position, size, [storages[key] for key in keys])


def _legacy_places(stream: IO[bytes], position: int, size: int, storages: list[Storage]) -> dict[str, int]:
    places = {}
    for storage in storages:
        stream.seek(position)
        (count,) = struct.unpack("<q", stream.read(8))
        position += 8
        if count != storage.count:
            raise MalformedError(f"storage '{storage.key}' should hold {storage.count} numbers, and has {count}")
        places[storage.key] = position
        position += count * storage.itemsize
        if position > size:
            raise MalformedError("its end is missing")
    return places


# -- The state dict in what was read -----------------------------------------------------------------------------------


def _state(content: Any, name: str) -> dict[str, Any]:
    """Give the entries of the state dict."""
    if isinstance(content, PickledMapping):
        wrapped = [content.entries[key] for key in _WRAPPERS if key in content.entries]
        inner = [value.entries["module"] for value in wrapped if _is_mapping_with(value, "module")]
        for candidate in (*wrapped, *inner, content):
            if _is_state(candidate):
                return dict(candidate.entries)
        program = next((value for value in (*wrapped, *inner) if _is_object(value)), None)
    else:
        program = content if _is_object(content) else None
    if program is not None:
        raise UntrustedCodeError(
            f"The weights '{name}' are a whole Python object ({program.what[:100]}), which only its own program can "
            f"open, and {_NOT_RUN}.",
            hint=_way_out_of(program.what, name),
        )
    holds = (
        ", ".join(f"'{key[:40]}'" for key in list(content.entries)[:8]) if isinstance(content, PickledMapping) else ""
    )
    raise ModelPackageError(
        f"The weights '{name}' hold no state dict: names with tensors were expected"
        f"{f', and what stands there is {holds}' if holds else ''}.",
        hint=_SAVE_AGAIN,
    )


def _way_out_of(what: str, name: str) -> str:
    """Say how a whole pickled network becomes a file that Kestrel runs: by the export of the program that made it."""
    plain = name.replace("\\", "/").rpartition("/")[2]
    for prefix, command in _EXPORTS:
        if what.startswith(prefix):
            return (
                f"Export it where it was trained: {command.format(name=plain)} - and choose the file that this makes."
            )
    return f"{_SAVE_AGAIN} Or export the model to ONNX."


def _is_object(value: Any) -> bool:
    return isinstance(value, Stub) and value is not NO_DATA


def _is_mapping_with(value: Any, key: str) -> bool:
    return isinstance(value, PickledMapping) and key in value.entries


def _is_state(value: Any) -> bool:
    """Tell whether names lead to tensors, and to little else: counters as numbers, versions, state of extensions."""
    if not isinstance(value, PickledMapping) or value.n_others:
        return False
    n_tensors = sum(isinstance(entry, (PickledTensor, UnreadTensor)) for entry in value.entries.values())
    return 2 * n_tensors > len(value.entries)


def _tensors_of(
    state: Mapping[str, Any], places: Mapping[str, int], path: Path, size: int, name: str
) -> dict[str, CheckpointTensor]:
    """Give the tensors with their places in the file; what is no tensor is left out."""
    tensors = {}
    for key, value in state.items():
        if isinstance(value, UnreadTensor):
            raise ModelUnsupportedError(
                f"The tensor '{key[:100]}' of the weights '{name}' is of a kind that Kestrel does not read: "
                f"{value.what[:100]}.",
                hint="Save the state dict of the plain network: not quantised, not sparse, no complex numbers.",
            )
        if isinstance(value, PickledTensor):
            storage = value.storage
            place = places[storage.key] + value.offset * storage.itemsize
            tensors[key] = CheckpointTensor(key, storage.dtype, value.shape, path, place, value.stride)
    factor, least = EXPANSION
    if sum(tensor.nbytes for tensor in tensors.values()) > max(factor * size, least):
        raise MalformedError("its tensors would take far more memory than the file has bytes")
    return tensors
