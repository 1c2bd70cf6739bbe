"""PyTorch checkpoints (.pth, .pt) as data: the names and tensors of a state dict, and nothing else that a file holds.

A checkpoint is a pickle, which is a program for a small stack machine, with the tensors' numbers behind it. Python's
own machine calls whatever the program names; the one here calls nothing. It knows the few names that make tensors and
mappings, by their text, and puts an inert stub in the place of everything else: optimizers, schedules, numpy scalars,
whole modules. Nothing is imported, no attribute is looked up, and no value of the file becomes code.

    container                 directory             pickle                 numbers of the tensors
    zip (torch 1.6 and later) _read_directory       member data.pkl        one member a storage, not compressed
    legacy (before 1.6)       five pickles in turn  the fourth of them     int64 count and numbers, storage by storage

All that a file claims (sizes, counts, offsets, strides) is checked against the file before memory is taken for it, and
the numbers are read tensor by tensor, when they are asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import ModelError, ModelPackageError, ModelUnsupportedError, UntrustedCodeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_PICKLE_BYTES = 64 * 2**20
MAX_TENSORS = 100_000
MAX_OPERATIONS = 2_000_000
"""Most steps of the stack machine; the state dict of a large network with its optimizer's takes some 100,000."""
MAX_VALUES = 400_000
"""Most values that these steps may make."""
MAX_TEXT_BYTES = 8 * 2**20
"""Most text that is kept, all names together."""
MAX_NAME_BYTES = 1024
"""Longest text that is kept; longer ones are no names of tensors."""
EXPANSION = (4, 64 * 2**20)
"""Tensors may take this many times the file's size, or this many bytes: views share numbers, copies do not."""

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_NEWEST_PROTOCOL = 5
_MAX_REFERENCE = 6
_MAX_INTEGER_BYTES = 255
_MAX_AXES = 32
_MAX_ELEMENTS = 2**48
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "ema")
"""Names under which programs for training keep the state dict beside other things."""
_SAVE_AGAIN = "Save the state dict alone: torch.save(model.state_dict(), 'weights.pth'), best as safetensors."
_NOT_RUN = "Kestrel does not run programs from packages"
_MALFORMED = (
    IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, EOFError, struct.error, RecursionError,
)  # fmt: skip
"""What a malformed file can cause in the code below, by design: a stack that is empty, an entry that is not there."""

_DTYPES = {
    "float64": ("<f8", 8), "float32": ("<f4", 4), "float16": ("<f2", 2), "bfloat16": ("<u2", 2), "int64": ("<i8", 8),
    "int32": ("<i4", 4), "int16": ("<i2", 2), "int8": ("<i1", 1), "uint8": ("<u1", 1), "bool": ("<u1", 1),
}  # fmt: skip
"""torch's name of a type -> numpy's, and the bytes of a number; numpy has no bfloat16, and lends its bits a uint16."""
_STORAGES = {
    "DoubleStorage": ("float64", 8), "FloatStorage": ("float32", 4), "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2), "LongStorage": ("int64", 8), "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2), "CharStorage": ("int8", 1), "ByteStorage": ("uint8", 1), "BoolStorage": ("bool", 1),
    "ComplexFloatStorage": ("complex64", 8), "ComplexDoubleStorage": ("complex128", 16), "QInt8Storage": ("qint8", 1),
    "QUInt8Storage": ("quint8", 1), "QInt32Storage": ("qint32", 4), "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1), "UntypedStorage": ("bytes", 1),
}  # fmt: skip
"""Name of a storage's class -> torch's name of the type, and the bytes of a number. Not all types are read."""


class _MalformedError(Exception):
    """The file is not what its container promises; the text completes "the file is damaged: "."""


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
        return _n_elements(self.shape) * _DTYPES[self.dtype][1]

    def numpy(self) -> NDArray[Any]:
        """Read the numbers into an array of their own, in C order; bfloat16 as its bits in uint16.

        Raises:
            ModelPackageError: the file is gone, or shorter than it was.
        """
        import numpy as np

        code, itemsize = _DTYPES[self.dtype]
        n = _n_spanned(self.shape, self.stride)
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.offset)
                numbers = np.fromfile(stream, code, n)
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "the memory does not hold it"
            raise ModelPackageError(f"The tensor '{self.name}' cannot be read: {reason}.") from error
        if len(numbers) != n:
            raise ModelPackageError(f"The tensor '{self.name}' cannot be read: the file was cut off meanwhile.")
        if n == 0 or self.stride == _contiguous(self.shape):
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
    except _MalformedError as error:
        raise _damaged(name, str(error)) from error
    except _MALFORMED as error:
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

_END = struct.Struct("<4s4H2LH")
_END_64_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_MAX_DIRECTORY_BYTES = 32 * 2**20
_MAX_COMMENT = 2**16
_FULL_16, _FULL_32 = 2**16 - 1, 2**32 - 1


@dataclass(frozen=True)
class _Record:
    """A member of the archive: its own header, its size, and where the next thing begins."""

    header: int
    size: int
    end: int


def _read_zip(stream: IO[bytes], size: int, name: str) -> tuple[Any, dict[str, int]]:
    """Give the pickled object, and the place in the file of each storage's numbers."""
    directory, start_of_directory = _read_directory(stream, size)
    _refuse_programs(directory, name)
    root = _root(directory, name)
    records = _checked_records(directory, start_of_directory)
    _check_byte_order(stream, records, root, name)
    pickle = records[root + "data.pkl"]
    if pickle.size > MAX_PICKLE_BYTES:
        raise _MalformedError(f"its pickle has {pickle.size} bytes")
    stream.seek(_place(stream, records, root + "data.pkl"))
    machine = _Machine(_Stream(stream, pickle.size))
    content = machine.load()
    places = {}
    for key, storage in machine.storages.items():
        record = records.get(f"{root}data/{key}")
        if record is None:
            raise _MalformedError(f"the numbers of storage '{key}' are missing")
        if record.size // storage.itemsize != storage.count:
            raise _MalformedError(f"storage '{key}' should hold {storage.count} numbers, and has {record.size} bytes")
        places[key] = _place(stream, records, f"{root}data/{key}")
    return content, places


def _read_directory(stream: IO[bytes], size: int) -> tuple[dict[str, tuple[int, int, bool]], int]:
    """Give header offset, size and "plainly stored" of each member, and where the directory begins.

    Source: APPNOTE.TXT 6.3.10 of PKWARE, sections 4.3.7 to 4.3.16. Python's own zipfile builds some 600 bytes for each
    entry before anybody can say stop, and looks neither for overlaps nor for names that are there twice.
    """
    n_entries, directory_size, start = _end_of_directory(stream, size)
    if n_entries > MAX_TENSORS + 1000 or directory_size > _MAX_DIRECTORY_BYTES:
        raise _MalformedError(f"its archive lists {n_entries} members")
    if start + directory_size > size:
        raise _MalformedError("its end is missing")
    stream.seek(start)
    entries: dict[str, tuple[int, int, bool]] = {}
    for _ in range(n_entries):
        (signature, _, _, flags, method, _, _, _, packed, unpacked, n_name, n_extra, n_comment, _, _, _, header) = (
            _ENTRY.unpack(stream.read(_ENTRY.size))
        )
        if signature != b"PK\x01\x02":
            raise _MalformedError("its archive's directory is broken")
        name = stream.read(n_name).decode("utf-8", "replace").replace("\\", "/")
        unpacked, packed, header = _large_values(stream.read(n_extra), unpacked, packed, header)
        stream.seek(n_comment, os.SEEK_CUR)
        if name in entries:
            raise _MalformedError(f"its archive holds the member '{name[:80]}' twice")
        if not name.endswith("/"):
            entries[name] = header, unpacked, method == 0 and packed == unpacked and not flags & 1
    return entries, start


def _end_of_directory(stream: IO[bytes], size: int) -> tuple[int, int, int]:
    """Give the directory's number of entries, its size, and its place."""
    tail_at = max(size - _END.size - _MAX_COMMENT - _END_64_LOCATOR.size, 0)
    stream.seek(tail_at)
    tail = stream.read(size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise _MalformedError("its end is missing")
    _, _, _, _, n_entries, directory_size, start, _ = _END.unpack_from(tail, at)
    if n_entries != _FULL_16 and _FULL_32 not in (directory_size, start):
        return n_entries, directory_size, start
    if at < _END_64_LOCATOR.size:
        raise _MalformedError("its archive's directory is broken")
    signature, _, end_at, _ = _END_64_LOCATOR.unpack_from(tail, at - _END_64_LOCATOR.size)
    if signature != b"PK\x06\x07":
        return n_entries, directory_size, start  # 65,535 entries, plainly
    stream.seek(min(end_at, size))
    signature, _, _, _, _, _, _, n_entries, directory_size, start = _END_64.unpack(stream.read(_END_64.size))
    if signature != b"PK\x06\x06":
        raise _MalformedError("its archive's directory is broken")
    return n_entries, directory_size, start


def _large_values(extra: bytes, *values: int) -> list[int]:
    """Give an entry's numbers, taking from its extra field those that do not fit into 32 bits."""
    wide: list[int] = []
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<2H", extra)
        if tag == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
        extra = extra[4 + length :]
    return [wide.pop(0) if value == _FULL_32 and wide else value for value in values]


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
        raise _MalformedError("its archive holds several pickles")
    holds = ", ".join(sorted(member[:40] for member in names)[:5])
    raise ModelPackageError(
        f"The file '{name}' is a zip archive, but no PyTorch checkpoint.",
        hint=f"It holds: {holds}." if holds else "It holds nothing.",
    )


def _checked_records(entries: Mapping[str, tuple[int, int, bool]], start_of_directory: int) -> dict[str, _Record]:
    """Give the members, none compressed, encrypted, or with bytes of another one or of the directory."""
    records, end = {}, start_of_directory
    for name, (header, size, is_stored) in sorted(entries.items(), key=lambda item: item[1][0], reverse=True):
        if not is_stored:
            raise _MalformedError(f"its member '{name[:80]}' is compressed or encrypted, which torch.save never does")
        if header + _LOCAL.size + size > end:
            raise _MalformedError(f"its member '{name[:80]}' overlaps what comes after it")
        records[name] = _Record(header, size, end)
        end = header
    return records


def _place(stream: IO[bytes], records: Mapping[str, _Record], name: str) -> int:
    """Give the place of a member's first byte, behind its own header."""
    record = records[name]
    stream.seek(record.header)
    signature, _, flags, method, _, _, _, _, _, n_name, n_extra = _LOCAL.unpack(stream.read(_LOCAL.size))
    own_name = stream.read(n_name).decode("utf-8", "replace").replace("\\", "/")
    place: int = record.header + _LOCAL.size + n_name + n_extra
    if signature != b"PK\x03\x04" or method != 0 or flags & 1 or own_name != name or place + record.size > record.end:
        raise _MalformedError(f"its member '{name[:80]}' is not where the archive's directory says")
    return place


def _check_byte_order(stream: IO[bytes], records: Mapping[str, _Record], root: str, name: str) -> None:
    if root + "byteorder" not in records:
        return
    stream.seek(_place(stream, records, root + "byteorder"))
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
    pickle = _Stream(stream, min(size, MAX_PICKLE_BYTES))
    machine = _Machine(pickle)
    if machine.load() != _MAGIC:
        raise ModelPackageError(
            f"The file '{name}' is a Python pickle that torch.save did not write.", hint=_SAVE_AGAIN
        )
    version = machine.load()
    if version != _PROTOCOL:
        raise _MalformedError("it names an unknown version of its own form")
    machine.load()  # sizes of C types and the byte order of the computer; the numbers are little endian always
    content = machine.load()
    storages = machine.storages
    keys = machine.load()
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or set(keys) != set(storages) or len(keys) != len(storages):
        raise _MalformedError("its list of storages does not fit")
    return content, _legacy_places(stream, pickle.position, size, [storages[key] for key in keys])


def _legacy_places(stream: IO[bytes], position: int, size: int, storages: list[_Storage]) -> dict[str, int]:
    places = {}
    for storage in storages:
        stream.seek(position)
        (count,) = struct.unpack("<q", stream.read(8))
        position += 8
        if count != storage.count:
            raise _MalformedError(f"storage '{storage.key}' should hold {storage.count} numbers, and has {count}")
        places[storage.key] = position
        position += count * storage.itemsize
        if position > size:
            raise _MalformedError("its end is missing")
    return places


# -- The stack machine -------------------------------------------------------------------------------------------------


class _Stream:
    """The bytes of a pickle: never more than there are, and never many at a time."""

    def __init__(self, stream: IO[bytes], n_bytes: int) -> None:
        self._stream = stream
        self._left = n_bytes

    @property
    def position(self) -> int:
        """Give the place in the file."""
        return self._stream.tell()

    def read(self, n: int) -> bytes:
        """Give the next bytes."""
        data = self._stream.read(min(n, self._left))
        if len(data) != n:
            raise _MalformedError("its pickle ends too early")
        self._left -= n
        return data

    def skip(self, n: int) -> None:
        """Pass over the next bytes."""
        if not 0 <= n <= self._left:
            raise _MalformedError("its pickle ends too early")
        self._left -= n
        self._stream.seek(n, os.SEEK_CUR)

    def number(self, form: str) -> Any:
        """Give the next number, see `struct`."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Give the text up to the end of the line."""
        data = self._stream.readline(min(MAX_NAME_BYTES + 1, self._left))
        if not data.endswith(b"\n"):
            raise _MalformedError("its pickle holds a line without an end")
        self._left -= len(data)
        return data[:-1].decode("utf-8", "replace")


@dataclass(frozen=True)
class _Global:
    """The name of a class or function; nothing more."""

    module: str
    name: str


class _Stub:
    """Stands for a value that is of no use here. It holds nothing but a name for messages."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


class _UnreadTensor(_Stub):
    """Stands for a tensor of a kind that is not read."""

    __slots__ = ()


class _Mapping:
    """A mapping. Entries whose key is no text are counted only: keys of a stranger's choice make hashes costly."""

    __slots__ = ("entries", "n_others")

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.n_others = 0

    def put(self, key: Any, value: Any) -> None:
        """Keep an entry."""
        if isinstance(key, str):
            self.entries[key] = value
        else:
            self.n_others += 1


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file that tensors share.

    Attributes:
        count: Numbers of the whole storage.
        first, n: The part that this one is a view of.
    """

    key: str
    dtype: str
    itemsize: int
    count: int
    first: int
    n: int


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the pickle describes it: `offset` is its first number, counted in the whole storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_NO_DATA = _Stub("data")


class _Machine:
    """Runs pickles without running anything: see the head of this module.

    Several pickles may follow each other in a stream; the limits hold for all of them together.
    """

    def __init__(self, stream: _Stream) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stream = stream
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._n_operations = self._n_values = self._n_tensors = self._n_text = 0

    def load(self) -> Any:
        """Run one pickle and give its value."""
        self._stack, self._below, self._memo = [], [], {}
        read, operations = self._stream.read, _OPERATIONS
        while True:
            self._n_operations += 1
            if self._n_operations > MAX_OPERATIONS or self._n_values > MAX_VALUES:
                raise _MalformedError("its pickle is too long for weights")
            code = read(1)
            if code == b".":
                return self._stack.pop()
            operation = operations.get(code)
            if operation is None:
                raise _MalformedError(f"its pickle holds the unknown operation {code!r}")
            operation(self)

    def _push(self, value: Any) -> None:
        self._n_values += 1
        self._stack.append(value)

    # Numbers and texts

    def _constant(self, value: Any) -> None:
        self._stack.append(value)

    def _binary_number(self, form: str) -> None:
        self._push(self._stream.number(form))

    def _long(self, form: str) -> None:
        n = self._stream.number(form)
        if not 0 <= n <= _MAX_INTEGER_BYTES:
            self._stream.skip(n)
            self._push(_NO_DATA)
        else:
            self._push(int.from_bytes(self._stream.read(n), "little", signed=True))

    def _decimal(self) -> None:
        text = self._stream.line().rstrip("L")
        self._push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def _float(self) -> None:
        self._push(float(self._stream.line()))

    def _text(self, form: str) -> None:
        n = self._stream.number(form)
        if not 0 <= n <= MAX_NAME_BYTES:
            self._stream.skip(n)
            self._push(_NO_DATA)
            return
        self._n_text += n
        if self._n_text > MAX_TEXT_BYTES:
            raise _MalformedError("its pickle holds too much text for weights")
        self._push(self._stream.read(n).decode("utf-8", "replace"))

    def _text_line(self) -> None:
        text = self._stream.line()
        self._n_text += len(text)
        quotes = text[:1] + text[-1:]
        self._push(_NO_DATA if "\\" in text else text[1:-1] if quotes in ("''", '""') else text)

    def _bytes(self, form: str) -> None:
        self._stream.skip(self._stream.number(form))
        self._push(_NO_DATA)

    # Stack and memo

    def _mark(self) -> None:
        self._n_values += 1
        self._below.append(self._stack)
        self._stack = []

    def _popped(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._popped()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, form: str) -> None:
        self._memo[self._stream.number(form)] = self._stack[-1]

    def _put_line(self) -> None:
        self._memo[int(self._stream.line())] = self._stack[-1]

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, form: str) -> None:
        self._stack.append(self._memo[self._stream.number(form)])

    def _get_line(self) -> None:
        self._stack.append(self._memo[int(self._stream.line())])

    # Containers

    def _empty_list(self) -> None:
        self._push([])

    def _list(self) -> None:
        self._push(self._popped())

    def _append(self) -> None:
        value = self._stack.pop()
        if isinstance(self._stack[-1], list):
            self._stack[-1].append(value)

    def _extend(self) -> None:
        values = self._popped()
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _tuple(self) -> None:
        self._push(tuple(self._popped()))

    def _short_tuple(self, n: int) -> None:
        values = tuple(self._stack[-n:])
        if len(values) != n:
            raise _MalformedError("its pickle makes no sense")
        del self._stack[-n:]
        self._push(values)

    def _empty_mapping(self) -> None:
        self._push(_Mapping())

    def _mapping(self) -> None:
        values = self._popped()
        self._push(_Mapping())
        self._put_entries(values)

    def _set_entry(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put_entries([key, value])

    def _set_entries(self) -> None:
        self._put_entries(self._popped())

    def _put_entries(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, _Mapping):
            for key, value in zip(values[::2], values[1::2]):
                target.put(key, value)

    def _drop_to_mark(self) -> None:
        self._popped()

    def _frozen_set(self) -> None:
        self._popped()
        self._push(_NO_DATA)

    # Names, and what Python would call

    def _global(self) -> None:
        self._push(_Global(self._stream.line(), self._stream.line()))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(_Global(module, name) if isinstance(name, str) and isinstance(module, str) else _NO_DATA)

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._push(self._result(function, arguments))

    def _call_with_keywords(self) -> None:
        self._stack.pop()
        self._call()

    def _instance(self) -> None:
        name = f"{self._stream.line()}.{self._stream.line()}"
        self._popped()
        self._push(_Stub(name))

    def _object(self) -> None:
        values = self._popped()
        self._push(self._result(values[0], tuple(values[1:])))

    def _build(self) -> None:
        self._stack.pop()  # attributes of an object: of a state dict the versions of its modules
        if not self._stack:
            raise _MalformedError("its pickle makes no sense")

    def _result(self, function: Any, arguments: Any) -> Any:
        """Give what a function would give for arguments: a tensor or a mapping where its name says so, else a stub."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            return function if isinstance(function, _Stub) else _NO_DATA
        maker = _MAKERS.get((function.module, function.name))
        if maker is not None:
            return maker(self, arguments)
        is_tensor = function.module == "torch._utils" and function.name.startswith("_rebuild_")
        return (_UnreadTensor if is_tensor and function.name.isidentifier() else _Stub)(
            f"{function.module}.{function.name}"
        )

    def _ordered(self, arguments: tuple[Any, ...]) -> _Mapping:
        """Give an OrderedDict; Python 2 hands it a list of pairs."""
        mapping = _Mapping()
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self._n_values += len(pairs)
        for pair in pairs:
            key, value = pair
            mapping.put(key, value)
        return mapping

    def _first(self, arguments: tuple[Any, ...]) -> Any:
        """Give what a Parameter wraps."""
        return arguments[0] if arguments else _NO_DATA

    def _of_type(self, arguments: tuple[Any, ...]) -> Any:
        """Give a tensor of a class that is derived from torch's, as a plain one: function, class, arguments, ..."""
        return self._result(arguments[0], arguments[2])

    def _tensor(self, arguments: tuple[Any, ...]) -> Any:
        """Give a tensor whose numbers all lie inside its storage.

        Args:
            arguments: Storage, offset, size, stride, requires_grad, hooks, and bits that would change the numbers.
        """
        storage, offset, shape, stride = arguments[:4]
        self._n_tensors += 1
        if self._n_tensors > MAX_TENSORS:
            raise _MalformedError(f"it holds more than {MAX_TENSORS} tensors")
        bits = arguments[6] if len(arguments) > 6 else None
        if isinstance(bits, _Mapping) and any(value is True for value in bits.entries.values()):
            return _UnreadTensor("conjugated or negated")
        if not isinstance(storage, _Storage):
            raise _MalformedError("a tensor has no storage")
        if storage.dtype not in _DTYPES:
            return _UnreadTensor(storage.dtype)
        _check_extent(storage.n, offset, shape, stride)
        return _Tensor(storage, storage.first + offset, shape, stride)

    def _persistent(self) -> None:
        """Give what stands outside the pickle: ("storage", type, key, device, count[, view]), or a module's class."""
        reference = self._stack.pop()
        if not isinstance(reference, tuple) or not 2 <= len(reference) <= _MAX_REFERENCE:
            raise _MalformedError("its pickle names something outside it")
        if reference[0] == "module":
            self._push(reference[1])
        elif reference[0] == "storage":
            self._push(self._storage(*reference[1:]))
        else:
            raise _MalformedError("its pickle names something outside it")

    def _storage(self, kind: Any, key: Any, _: Any, count: Any, view: Any = None) -> _Storage:
        if not isinstance(kind, _Global) or not isinstance(key, str) or not _is_count(count):
            raise _MalformedError("its pickle names a storage without type, key or size")
        if kind.module not in ("torch", "torch.cuda", "torch.storage") or kind.name not in _STORAGES:
            raise _MalformedError(f"its pickle names a storage of the unknown type '{kind.name[:80]}'")
        dtype, itemsize = _STORAGES[kind.name]
        first, n = 0, count
        if view is not None:
            _, first, n = view
            if not _is_count(first) or not _is_count(n) or first + n > count:
                raise _MalformedError(f"a view of storage '{key[:80]}' lies outside it")
        storage = _Storage(key, dtype, itemsize, count, first, n)
        known = self.storages.setdefault(key, storage)
        if (known.itemsize, known.count) != (itemsize, count):
            raise _MalformedError(f"storage '{key[:80]}' has two sizes")
        return storage

    def _protocol(self) -> None:
        if self._stream.number("B") > _NEWEST_PROTOCOL:
            raise _MalformedError("its pickle is of a form that does not exist")

    def _frame(self) -> None:
        self._stream.number("<Q")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_extent(n_stored: int, offset: Any, shape: Any, stride: Any) -> None:
    """Refuse a tensor that reaches beyond its storage, or claims more elements than anything has."""
    axes = (shape, stride)
    if not all(isinstance(axis, tuple) and len(axis) <= _MAX_AXES for axis in axes) or len(shape) != len(stride):
        raise _MalformedError("a tensor has no sizes and steps")
    if not all(_is_count(value) for value in (offset, *shape, *stride)):
        raise _MalformedError("a tensor has sizes or steps that are no counts")
    if _n_elements(tuple(size for size in shape if size)) > _MAX_ELEMENTS:
        raise _MalformedError("a tensor has more elements than any file")
    if offset + _n_spanned(shape, stride) > n_stored:
        raise _MalformedError("a tensor reaches beyond its storage")


def _n_elements(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _n_spanned(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Give how many numbers lie from a tensor's first one to its last, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(_n_elements(shape[axis + 1 :]) for axis in range(len(shape)))


_MAKERS: Mapping[tuple[str, str], Callable[[_Machine, tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): _Machine._ordered,
    ("torch._utils", "_rebuild_tensor"): _Machine._tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _Machine._tensor,
    ("torch._utils", "_rebuild_parameter"): _Machine._first,
    ("torch._utils", "_rebuild_parameter_with_state"): _Machine._first,
    ("torch.nn.parameter", "Parameter"): _Machine._first,
    ("torch.nn.parameter", "Buffer"): _Machine._first,
    ("torch.autograd.variable", "Variable"): _Machine._first,
    ("torch._tensor", "_rebuild_from_type_v2"): _Machine._of_type,
}
"""What makes tensors and mappings, by module and name."""


def _with(method: Callable[..., None], *arguments: Any) -> Callable[[_Machine], None]:
    return lambda machine: method(machine, *arguments)


_OPERATIONS: Mapping[bytes, Callable[[_Machine], None]] = {
    b"\x80": _Machine._protocol,
    b"\x95": _Machine._frame,
    b"N": _with(_Machine._constant, None),
    b"\x88": _with(_Machine._constant, True),
    b"\x89": _with(_Machine._constant, False),
    b"J": _with(_Machine._binary_number, "<i"),
    b"K": _with(_Machine._binary_number, "B"),
    b"M": _with(_Machine._binary_number, "<H"),
    b"G": _with(_Machine._binary_number, ">d"),
    b"\x8a": _with(_Machine._long, "B"),
    b"\x8b": _with(_Machine._long, "<i"),
    b"I": _Machine._decimal,
    b"L": _Machine._decimal,
    b"F": _Machine._float,
    b"X": _with(_Machine._text, "<I"),
    b"\x8c": _with(_Machine._text, "B"),
    b"\x8d": _with(_Machine._text, "<Q"),
    b"T": _with(_Machine._text, "<i"),  # a byte string of Python 2, where names are such
    b"U": _with(_Machine._text, "B"),
    b"S": _Machine._text_line,
    b"V": _Machine._text_line,
    b"B": _with(_Machine._bytes, "<I"),
    b"C": _with(_Machine._bytes, "B"),
    b"\x8e": _with(_Machine._bytes, "<Q"),
    b"\x96": _with(_Machine._bytes, "<Q"),
    b"(": _Machine._mark,
    b"0": _Machine._pop,
    b"1": _Machine._drop_to_mark,
    b"2": _Machine._duplicate,
    b"p": _Machine._put_line,
    b"q": _with(_Machine._put, "B"),
    b"r": _with(_Machine._put, "<I"),
    b"\x94": _Machine._memoize,
    b"g": _Machine._get_line,
    b"h": _with(_Machine._get, "B"),
    b"j": _with(_Machine._get, "<I"),
    b"]": _Machine._empty_list,
    b"l": _Machine._list,
    b"a": _Machine._append,
    b"e": _Machine._extend,
    b")": _with(_Machine._constant, ()),
    b"t": _Machine._tuple,
    b"\x85": _with(_Machine._short_tuple, 1),
    b"\x86": _with(_Machine._short_tuple, 2),
    b"\x87": _with(_Machine._short_tuple, 3),
    b"}": _Machine._empty_mapping,
    b"d": _Machine._mapping,
    b"s": _Machine._set_entry,
    b"u": _Machine._set_entries,
    b"\x8f": _with(_Machine._constant, _NO_DATA),
    b"\x90": _Machine._drop_to_mark,
    b"\x91": _Machine._frozen_set,
    b"c": _Machine._global,
    b"\x93": _Machine._stack_global,
    b"R": _Machine._call,
    b"\x81": _Machine._call,
    b"\x92": _Machine._call_with_keywords,
    b"i": _Machine._instance,
    b"o": _Machine._object,
    b"b": _Machine._build,
    b"Q": _Machine._persistent,
}
"""The operations of pickle's protocols 0 to 5, except what no checkpoint has: buffers outside the pickle, names of an
extension registry, and references that are text.

Source: the comments of Python's pickletools.
"""


# -- The state dict in what was read -----------------------------------------------------------------------------------


def _state(content: Any, name: str) -> dict[str, Any]:
    """Give the entries of the state dict."""
    if isinstance(content, _Mapping):
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
            hint=_SAVE_AGAIN,
        )
    holds = ", ".join(f"'{key[:40]}'" for key in list(content.entries)[:8]) if isinstance(content, _Mapping) else ""
    raise ModelPackageError(
        f"The weights '{name}' hold no state dict: names with tensors were expected"
        f"{f', and what stands there is {holds}' if holds else ''}.",
        hint=_SAVE_AGAIN,
    )


def _is_object(value: Any) -> bool:
    return isinstance(value, _Stub) and value is not _NO_DATA


def _is_mapping_with(value: Any, key: str) -> bool:
    return isinstance(value, _Mapping) and key in value.entries


def _is_state(value: Any) -> bool:
    """Tell whether names lead to tensors, and to little else: counters as numbers, versions, state of extensions."""
    if not isinstance(value, _Mapping) or value.n_others:
        return False
    n_tensors = sum(isinstance(entry, (_Tensor, _UnreadTensor)) for entry in value.entries.values())
    return 2 * n_tensors > len(value.entries)


def _tensors_of(
    state: Mapping[str, Any], places: Mapping[str, int], path: Path, size: int, name: str
) -> dict[str, CheckpointTensor]:
    """Give the tensors with their places in the file; what is no tensor is left out."""
    tensors = {}
    for key, value in state.items():
        if isinstance(value, _UnreadTensor):
            raise ModelUnsupportedError(
                f"The tensor '{key[:100]}' of the weights '{name}' is of a kind that Kestrel does not read: "
                f"{value.what[:100]}.",
                hint="Save the state dict of the plain network: not quantised, not sparse, no complex numbers.",
            )
        if isinstance(value, _Tensor):
            storage = value.storage
            place = places[storage.key] + value.offset * storage.itemsize
            tensors[key] = CheckpointTensor(key, storage.dtype, value.shape, path, place, value.stride)
    factor, least = EXPANSION
    if sum(tensor.nbytes for tensor in tensors.values()) > max(factor * size, least):
        raise _MalformedError("its tensors would take far more memory than the file has bytes")
    return tensors
