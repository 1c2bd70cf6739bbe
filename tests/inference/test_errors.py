from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference import errors
from kestrel.inference.errors import InferenceError, RasterReadError, error_from_dict, first_line, is_out_of_memory

CLASSES = sorted(
    (cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, InferenceError)),
    key=lambda cls: cls.code,
)

json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())


@pytest.mark.parametrize("cls", CLASSES)
@given(message=st.text(), hint=st.text(), context=st.dictionaries(st.text().filter(lambda name: name not in (
    "message", "hint", "self")), json_values))  # fmt: skip
def test_an_error_comes_back_from_its_wire_form_as_it_was(
    cls: type[InferenceError], message: str, hint: str, context: dict[str, Any]
) -> None:
    error = error_from_dict(cls(message, hint=hint, **context).to_dict())
    assert (cls, message, hint, context) == (type(error), error.message, error.hint, error.context)


def test_codes_are_told_apart() -> None:
    assert len(CLASSES) == len({cls.code for cls in CLASSES})


def test_the_codes_of_the_wire_format_stay_as_they_are() -> None:
    assert [
        "backend-missing", "credentials", "device", "device-memory", "device-unavailable", "disk-full", "error", "job",
        "model", "model-hash", "model-incompatible", "model-package", "model-unsupported", "network", "output",
        "protocol", "raster", "raster-changed", "raster-fetch", "raster-open", "raster-read", "service", "tile-failed",
        "untrusted-code", "worker", "worker-crash", "worker-start",
    ] == [cls.code for cls in CLASSES]  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [{}, {"code": "of-tomorrow", "message": "m"}, {"code": None, "hint": None}, {"context": [1, 2]},
     {"context": {"hint": "h", "message": "m", "self": 1}}, {"code": []}],
)  # fmt: skip
def test_the_wire_form_of_a_newer_version_becomes_an_error_all_the_same(data: dict[str, Any]) -> None:
    assert InferenceError is type(error_from_dict(data))


def test_the_text_of_an_error_is_its_message_and_its_hint() -> None:
    assert "It is broken. Mend it." == str(RasterReadError("It is broken.", hint="Mend it.", window=[1, 2, 3, 4]))
    assert "It is broken." == str(RasterReadError("It is broken."))


@pytest.mark.parametrize(
    ("error", "is_short"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer"), True),
        (RuntimeError("Available memory of 1024 is smaller than requested bytes of 2048"), True),
        (RuntimeError("std::bad_alloc"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("view size is not compatible with the tensor's memory layout"), False),
    ],
)
def test_what_libraries_say_when_memory_is_short(error: Exception, is_short: bool) -> None:
    assert is_out_of_memory(error) is is_short


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("  It failed.\nIn a place."), "It failed"),
        (RuntimeError(""), "RuntimeError"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
