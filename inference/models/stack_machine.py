"""A stack machine for pickles that calls nothing, and knows of PyTorch what its checkpoints need.

A pickle is a program. Python's own machine imports and calls whatever the program names; this one looks names up in a
small table of texts, gives tensors and mappings where they stand in it, and an inert stub everywhere else. Nothing is
imported, no attribute is looked up, and no value of the file becomes code. Every size that the program claims is held
against what there is, and the work, the values and the texts that it may ask for have limits.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

MAX_TENSORS = 100_000
MAX_OPERATIONS = 2_000_000
"""Most steps of the stack machine; the state dict of a large network with its optimizer's takes some 100,000."""
MAX_VALUES = 400_000
"""Most values that these steps may make."""
MAX_TEXT_BYTES = 8 * 2**20
"""Most text that is kept, all names together."""
MAX_NAME_BYTES = 1024
"""Longest text that is kept; longer ones are no names of tensors."""

_NEWEST_PROTOCOL = 5
_MAX_REFERENCE = 6
_MAX_INTEGER_BYTES = 255
_MAX_AXES = 32
_MAX_ELEMENTS = 2**48

DTYPES = {
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


MALFORMED = (
    IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError, EOFError, struct.error, RecursionError,
)  # fmt: skip
"""What a malformed file can cause in the machine, by design: a stack that is empty, an entry that is not there."""


class MalformedError(Exception):
    """The file is not what its container promises; the text completes "the file is damaged: "."""


class Stream:
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
            raise MalformedError("its pickle ends too early")
        self._left -= n
        return data

    def skip(self, n: int) -> None:
        """Pass over the next bytes."""
        if not 0 <= n <= self._left:
            raise MalformedError("its pickle ends too early")
        self._left -= n
        self._stream.seek(n, os.SEEK_CUR)

    def number(self, form: str) -> Any:
        """Give the next number, see `struct`."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Give the text up to the end of the line."""
        data = self._stream.readline(min(MAX_NAME_BYTES + 1, self._left))
        if not data.endswith(b"\n"):
            raise MalformedError("its pickle holds a line without an end")
        self._left -= len(data)
        return data[:-1].decode("utf-8", "replace")


@dataclass(frozen=True)
class _Global:
    """The name of a class or function; nothing more."""

    module: str
    name: str


class Stub:
    """Stands for a value that is of no use here. It holds nothing but a name for messages."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what


class UnreadTensor(Stub):
    """Stands for a tensor of a kind that is not read."""

    __slots__ = ()


class PickledMapping:
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
class Storage:
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
class PickledTensor:
    """A tensor as the pickle describes it: `offset` is its first number, counted in the whole storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


NO_DATA = Stub("data")


class Machine:
    """Runs pickles without running anything: see the head of this module.

    Several pickles may follow each other in a stream; the limits hold for all of them together.
    """

    def __init__(self, stream: Stream) -> None:
        self.storages: dict[str, Storage] = {}
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
                raise MalformedError("its pickle is too long for weights")
            code = read(1)
            if code == b".":
                return self._stack.pop()
            operation = operations.get(code)
            if operation is None:
                raise MalformedError(f"its pickle holds the unknown operation {code!r}")
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
            self._push(NO_DATA)
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
            self._push(NO_DATA)
            return
        self._count_text(n)
        self._push(self._stream.read(n).decode("utf-8", "replace"))

    def _count_text(self, n: int) -> None:
        self._n_text += n
        if self._n_text > MAX_TEXT_BYTES:
            raise MalformedError("its pickle holds too much text for weights")

    def _line(self) -> str:
        line = self._stream.line()
        self._count_text(len(line))
        return line

    def _text_line(self) -> None:
        text = self._line()
        quotes = text[:1] + text[-1:]
        self._push(NO_DATA if "\\" in text else text[1:-1] if quotes in ("''", '""') else text)

    def _bytes(self, form: str) -> None:
        self._stream.skip(self._stream.number(form))
        self._push(NO_DATA)

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
            raise MalformedError("its pickle makes no sense")
        del self._stack[-n:]
        self._push(values)

    def _empty_mapping(self) -> None:
        self._push(PickledMapping())

    def _mapping(self) -> None:
        values = self._popped()
        self._push(PickledMapping())
        self._put_entries(values)

    def _set_entry(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._put_entries([key, value])

    def _set_entries(self) -> None:
        self._put_entries(self._popped())

    def _put_entries(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, PickledMapping):
            for key, value in zip(values[::2], values[1::2]):
                target.put(key, value)

    def _drop_to_mark(self) -> None:
        self._popped()

    def _frozen_set(self) -> None:
        self._popped()
        self._push(NO_DATA)

    # Names, and what Python would call

    def _global(self) -> None:
        self._push(_Global(self._line(), self._line()))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push(_Global(module, name) if isinstance(name, str) and isinstance(module, str) else NO_DATA)

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._push(self._result(function, arguments))

    def _call_with_keywords(self) -> None:
        self._stack.pop()
        self._call()

    def _instance(self) -> None:
        name = f"{self._line()}.{self._line()}"
        self._popped()
        self._push(Stub(name))

    def _object(self) -> None:
        values = self._popped()
        self._push(self._result(values[0], tuple(values[1:])))

    def _build(self) -> None:
        self._stack.pop()  # attributes of an object: of a state dict the versions of its modules
        if not self._stack:
            raise MalformedError("its pickle makes no sense")

    def _result(self, function: Any, arguments: Any) -> Any:
        """Give what a function would give for arguments: a tensor or a mapping where its name says so, else a stub."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            return function if isinstance(function, Stub) else NO_DATA
        maker = _MAKERS.get((function.module, function.name))
        if maker is not None:
            return maker(self, arguments)
        is_tensor = function.module == "torch._utils" and function.name.startswith("_rebuild_")
        return (UnreadTensor if is_tensor and function.name.isidentifier() else Stub)(
            f"{function.module}.{function.name}"
        )

    def _ordered(self, arguments: tuple[Any, ...]) -> PickledMapping:
        """Give an OrderedDict; Python 2 hands it a list of pairs."""
        mapping = PickledMapping()
        pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
        self._n_values += len(pairs)
        for pair in pairs:
            key, value = pair
            mapping.put(key, value)
        return mapping

    def _first(self, arguments: tuple[Any, ...]) -> Any:
        """Give what a Parameter wraps."""
        return arguments[0] if arguments else NO_DATA

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
            raise MalformedError(f"it holds more than {MAX_TENSORS} tensors")
        bits = arguments[6] if len(arguments) > 6 else None
        if isinstance(bits, PickledMapping) and any(value is True for value in bits.entries.values()):
            return UnreadTensor("conjugated or negated")
        if not isinstance(storage, Storage):
            raise MalformedError("a tensor has no storage")
        if storage.dtype not in DTYPES:
            return UnreadTensor(storage.dtype)
        _check_extent(storage.n, offset, shape, stride)
        return PickledTensor(storage, storage.first + offset, shape, stride)

    def _persistent(self) -> None:
        """Give what stands outside the pickle: ("storage", type, key, device, count[, view]), or a module's class."""
        reference = self._stack.pop()
        if not isinstance(reference, tuple) or not 2 <= len(reference) <= _MAX_REFERENCE:
            raise MalformedError("its pickle names something outside it")
        if reference[0] == "module":
            self._push(reference[1])
        elif reference[0] == "storage":
            self._push(self._storage(*reference[1:]))
        else:
            raise MalformedError("its pickle names something outside it")

    def _storage(self, kind: Any, key: Any, _: Any, count: Any, view: Any = None) -> Storage:
        if not isinstance(kind, _Global) or not isinstance(key, str) or not _is_count(count):
            raise MalformedError("its pickle names a storage without type, key or size")
        if kind.module not in ("torch", "torch.cuda", "torch.storage") or kind.name not in _STORAGES:
            raise MalformedError(f"its pickle names a storage of the unknown type '{kind.name[:80]}'")
        dtype, itemsize = _STORAGES[kind.name]
        first, n = 0, count
        if view is not None:
            _, first, n = view
            if not _is_count(first) or not _is_count(n) or first + n > count:
                raise MalformedError(f"a view of storage '{key[:80]}' lies outside it")
        storage = Storage(key, dtype, itemsize, count, first, n)
        known = self.storages.setdefault(key, storage)
        if (known.itemsize, known.count) != (itemsize, count):
            raise MalformedError(f"storage '{key[:80]}' has two sizes")
        return storage

    def _protocol(self) -> None:
        if self._stream.number("B") > _NEWEST_PROTOCOL:
            raise MalformedError("its pickle is of a form that does not exist")

    def _frame(self) -> None:
        self._stream.number("<Q")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _check_extent(n_stored: int, offset: Any, shape: Any, stride: Any) -> None:
    """Refuse a tensor that reaches beyond its storage, or claims more elements than anything has."""
    axes = (shape, stride)
    if not all(isinstance(axis, tuple) and len(axis) <= _MAX_AXES for axis in axes) or len(shape) != len(stride):
        raise MalformedError("a tensor has no sizes and steps")
    if not all(_is_count(value) for value in (offset, *shape, *stride)):
        raise MalformedError("a tensor has sizes or steps that are no counts")
    if n_elements(tuple(size for size in shape if size)) > _MAX_ELEMENTS:
        raise MalformedError("a tensor has more elements than any file")
    if offset + n_spanned(shape, stride) > n_stored:
        raise MalformedError("a tensor reaches beyond its storage")


def n_elements(shape: tuple[int, ...]) -> int:
    """Give how many elements a tensor of a shape has."""
    n = 1
    for size in shape:
        n *= size
    return n


def n_spanned(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Give how many numbers lie from a tensor's first one to its last, both included."""
    return 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride))


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Give the steps of a tensor in C order."""
    return tuple(n_elements(shape[axis + 1 :]) for axis in range(len(shape)))


_MAKERS: Mapping[tuple[str, str], Callable[[Machine, tuple[Any, ...]], Any]] = {
    ("collections", "OrderedDict"): Machine._ordered,
    ("torch._utils", "_rebuild_tensor"): Machine._tensor,
    ("torch.jit._pickle", "restore_type_tag"): Machine._first,
    ("torch._utils", "_rebuild_tensor_v2"): Machine._tensor,
    ("torch._utils", "_rebuild_parameter"): Machine._first,
    ("torch._utils", "_rebuild_parameter_with_state"): Machine._first,
    ("torch.nn.parameter", "Parameter"): Machine._first,
    ("torch.nn.parameter", "Buffer"): Machine._first,
    ("torch.autograd.variable", "Variable"): Machine._first,
    ("torch._tensor", "_rebuild_from_type_v2"): Machine._of_type,
}
"""What makes tensors and mappings, by module and name."""


def _with(method: Callable[..., None], *arguments: Any) -> Callable[[Machine], None]:
    return lambda machine: method(machine, *arguments)


_OPERATIONS: Mapping[bytes, Callable[[Machine], None]] = {
    b"\x80": Machine._protocol,
    b"\x95": Machine._frame,
    b"N": _with(Machine._constant, None),
    b"\x88": _with(Machine._constant, True),
    b"\x89": _with(Machine._constant, False),
    b"J": _with(Machine._binary_number, "<i"),
    b"K": _with(Machine._binary_number, "B"),
    b"M": _with(Machine._binary_number, "<H"),
    b"G": _with(Machine._binary_number, ">d"),
    b"\x8a": _with(Machine._long, "B"),
    b"\x8b": _with(Machine._long, "<i"),
    b"I": Machine._decimal,
    b"L": Machine._decimal,
    b"F": Machine._float,
    b"X": _with(Machine._text, "<I"),
    b"\x8c": _with(Machine._text, "B"),
    b"\x8d": _with(Machine._text, "<Q"),
    b"T": _with(Machine._text, "<i"),  # a byte string of Python 2, where names are such
    b"U": _with(Machine._text, "B"),
    b"S": Machine._text_line,
    b"V": Machine._text_line,
    b"B": _with(Machine._bytes, "<I"),
    b"C": _with(Machine._bytes, "B"),
    b"\x8e": _with(Machine._bytes, "<Q"),
    b"\x96": _with(Machine._bytes, "<Q"),
    b"(": Machine._mark,
    b"0": Machine._pop,
    b"1": Machine._drop_to_mark,
    b"2": Machine._duplicate,
    b"p": Machine._put_line,
    b"q": _with(Machine._put, "B"),
    b"r": _with(Machine._put, "<I"),
    b"\x94": Machine._memoize,
    b"g": Machine._get_line,
    b"h": _with(Machine._get, "B"),
    b"j": _with(Machine._get, "<I"),
    b"]": Machine._empty_list,
    b"l": Machine._list,
    b"a": Machine._append,
    b"e": Machine._extend,
    b")": _with(Machine._constant, ()),
    b"t": Machine._tuple,
    b"\x85": _with(Machine._short_tuple, 1),
    b"\x86": _with(Machine._short_tuple, 2),
    b"\x87": _with(Machine._short_tuple, 3),
    b"}": Machine._empty_mapping,
    b"d": Machine._mapping,
    b"s": Machine._set_entry,
    b"u": Machine._set_entries,
    b"\x8f": _with(Machine._constant, NO_DATA),
    b"\x90": Machine._drop_to_mark,
    b"\x91": Machine._frozen_set,
    b"c": Machine._global,
    b"\x93": Machine._stack_global,
    b"R": Machine._call,
    b"\x81": Machine._call,
    b"\x92": Machine._call_with_keywords,
    b"i": Machine._instance,
    b"o": Machine._object,
    b"b": Machine._build,
    b"Q": Machine._persistent,
}
"""The operations of pickle's protocols 0 to 5, except what no checkpoint has: buffers outside the pickle, names of an
extension registry, and references that are text.

Source: the comments of Python's pickletools.
"""
