from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from kestrel.inference.errors import ModelPackageError
from kestrel.inference.models.onnx_file import ELEMENT_TYPES, TensorInfo, read_onnx

axes = st.lists(st.one_of(st.integers(1, 2**31 - 1), st.sampled_from(["n", "height", ""])), max_size=6)
tensors = st.dictionaries(st.text(min_size=1, max_size=30), st.tuples(st.sampled_from(sorted(ELEMENT_TYPES)), axes),
                          min_size=1, max_size=5)  # fmt: skip


def model(inputs: dict, outputs: dict, metadata: dict[str, str] | None = None, weights: int = 0) -> onnx.ModelProto:
    infos = [[helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in group.items()]
             for group in (inputs, outputs)]  # fmt: skip
    stored = [numpy_helper.from_array(np.zeros(1000, np.float32), f"w{number}") for number in range(weights)]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], doc_string="d" * 300)], "g", *infos, stored)
    made = helper.make_model(graph, producer_name="made here")
    helper.set_model_props(made, metadata or {})
    return made


def expected(group: dict) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(name, ELEMENT_TYPES[kind], tuple(axis if isinstance(axis, int) else None for axis in shape))
        for name, (kind, shape) in group.items()
    )


@given(tensors, tensors, st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=5), st.integers(0, 3))
def test_what_the_onnx_library_writes_is_read(inputs: dict, outputs: dict, metadata: dict, weights: int) -> None:
    data = model(inputs, outputs, metadata, weights).SerializeToString()
    facts = read_onnx(io.BytesIO(data), "m.onnx")
    is_weight = {f"w{number}" for number in range(weights)}
    assert tuple(item for item in expected(inputs) if item.name not in is_weight) == facts.inputs
    assert (expected(outputs), metadata, "made here") == (facts.outputs, facts.metadata, facts.producer)


def test_weights_are_no_inputs_even_where_old_graphs_name_them_so() -> None:
    inputs = {"image": (1, [1, 3, 8, 8]), "w0": (1, [1000])}
    facts = read_onnx(io.BytesIO(model(inputs, {"y": (1, [1])}, weights=1).SerializeToString()), "m.onnx")
    assert ["image"] == [item.name for item in facts.inputs]


def test_weights_are_skipped_and_not_read(tmp_path: Path) -> None:
    made = model({"x": (1, [1, 3, 8, 8])}, {"y": (1, [1])})
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(4_000_000, np.float32), "large"))

    class Counting(io.BytesIO):
        n_bytes = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            Counting.n_bytes += len(data)
            return data

    read_onnx(Counting(made.SerializeToString()), "m.onnx")
    assert 0 < Counting.n_bytes < 2000


def test_an_output_without_a_shape_tells_so() -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([], "g", [], [value])
    (output,) = read_onnx(io.BytesIO(helper.make_model(graph).SerializeToString()), "m.onnx").outputs
    assert (None, "y float32 any shape") == (output.shape, str(output))
    assert "y float32 [1, ?]" == str(TensorInfo("y", "float32", (1, None)))


@pytest.mark.parametrize(
    "content", [b"", b"hello world", b"\x00" * 100, b"\xff" * 100, b"\x08\x09", b"\x3a\xff\xff\x03a"]
)
def test_a_file_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(ModelPackageError, match=r"'m\.onnx' is not an ONNX model"):
        read_onnx(io.BytesIO(content), "m.onnx")


SAMPLE = model({"x": (1, ["n", 3, 8, 8])}, {"y": (1, [1, 84, 8400])}, {"names": "{0: 'a'}"}, 2).SerializeToString()


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, len(SAMPLE))
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(changes: list[tuple[int, int]], length: int) -> None:
    data = bytearray(SAMPLE)
    for place, value in changes:
        data[place] = value
    try:
        facts = read_onnx(io.BytesIO(bytes(data[: length or None])), "m.onnx")
    except ModelPackageError:
        return
    assert facts.outputs
