from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.models.onnx_file import TensorInfo
from kestrel.inference.models.onnx_heads import HEADS, STRIDES, Question, grid_of, readings

GRID_640 = 8400
PROTOTYPES = ("proto", (1, 32, 160, 160))


def ask(*outputs: tuple[str, tuple[int | None, ...]], dtypes: tuple[str, ...] = (), **known: Any) -> list[str]:
    """Give the heads that outputs may have, the likeliest first."""
    kinds = dtypes or ("float32",) * len(outputs)
    infos = tuple(TensorInfo(name, kind, shape) for (name, shape), kind in zip(outputs, kinds))
    return [reading.head for reading in readings(Question(infos, **{"size": (640, 640), **known}))]


@pytest.mark.parametrize(
    ("shape", "known", "expected"),
    [
        ((1, 84, GRID_640), {"n_classes": 80}, ["yolov8"]),
        ((1, GRID_640, 84), {"n_classes": 80}, ["yolov8"]),
        ((1, 84, GRID_640), {}, ["yolov8"]),
        ((1, 3 * GRID_640, 85), {"n_classes": 80}, ["yolov5"]),
        ((1, 3 * GRID_640, 85), {}, ["yolov5"]),
        ((1, GRID_640, 85), {"n_classes": 80}, ["yolov5", "yolox"]),
        ((1, GRID_640, 85), {}, ["yolov5", "yolox", "yolov8"]),
        ((1, 300, 6), {"n_classes": 80}, ["rows"]),
        ((1, 100, 6), {}, ["rows", "detr"]),
        ((1, 300, 84), {"n_classes": 80}, ["detr"]),
        ((1, 6, GRID_640), {"n_classes": 2}, ["yolov8"]),
        ((1, GRID_640, 6), {"n_classes": 2}, ["yolov8"]),
        ((1, GRID_640, 6), {"n_classes": 1}, ["yolov5", "yolox"]),
        ((1, 300, 6), {"n_classes": 2}, ["rows", "detr"]),
        ((1, None, 6), {"n_classes": 80}, ["rows"]),
        ((1, 56, GRID_640), {"n_classes": 1, "task": "pose"}, ["yolov8-pose"]),
        ((1, 85, GRID_640), {"n_classes": 80, "task": "obb"}, ["yolov8-obb"]),
        ((1, 300, 7), {"n_classes": 80, "task": "obb", "is_end_to_end": True}, ["rows-obb"]),
        ((1, 300, 6), {"n_classes": 2, "is_end_to_end": True}, ["rows"]),
        ((1, 81, GRID_640), {"n_classes": 80}, []),
        ((1, 1234), {}, []),
        ((None, 7), {}, ["batch-rows"]),
    ],
)
def test_one_table_is_told_by_its_sides(
    shape: tuple[int | None, ...], known: dict[str, Any], expected: list[str]
) -> None:
    assert expected == ask(("output", shape), **known)


@pytest.mark.parametrize(
    ("outputs", "known", "expected"),
    [
        ([("o", (1, 116, GRID_640)), PROTOTYPES], {"n_classes": 80}, ["yolov8-seg"]),
        ([("o", (1, 3 * GRID_640, 117)), PROTOTYPES], {"n_classes": 80}, ["yolov5-seg"]),
        ([("o", (1, 300, 38)), PROTOTYPES], {"n_classes": 80}, ["rows-seg"]),
        ([("logits", (1, 100, 92)), ("pred_boxes", (1, 100, 4))], {}, ["detr"]),
        ([("dets", (1, 300, 4)), ("labels", (1, 300, 91))], {}, ["detr"]),
        ([("dets", (1, 100, 5)), ("labels", (1, 100))], {}, ["boxes"]),
        ([("scores", (1, 4420, 2)), ("boxes", (1, 4420, 4))], {"size": (240, 320)}, ["ssd"]),
        ([("a", (1, 8732, 4)), ("b", (1, 8732, 21))], {"size": (300, 300)}, ["ssd"]),
        ([("a", (1, 300, 80)), ("b", (1, 300, 4))], {}, ["detr"]),
        ([("boxes", (None, 4)), ("labels", (None,)), ("scores", (None,))], {}, ["boxes"]),
        ([("heat", (1, 80, 128, 128)), ("size", (1, 2, 128, 128))], {}, []),
        ([("boxes", (1, 100, 4))], {}, []),
    ],
)
def test_several_outputs_are_told_by_names_and_sides(
    outputs: list[tuple[str, tuple[int | None, ...]]], known: dict[str, Any], expected: list[str]
) -> None:
    assert expected == ask(*outputs, **known)


def test_outputs_without_names_are_told_by_their_types() -> None:
    shapes = [("1", (None, 4)), ("2", (None,)), ("3", (None,)), ("4", (None, 1, None, None))]
    infos = tuple(TensorInfo(name, kind, shape) for (name, shape), kind in
                  zip(shapes, ("float32", "int64", "float32", "float32")))  # fmt: skip
    (reading,) = readings(Question(infos))
    assert {"boxes": "1", "labels": "2", "scores": "3", "masks": "4"} == reading.roles
    assert ("boxes", "polygon") == (reading.head, reading.geometry)


@given(st.sampled_from(STRIDES), st.sampled_from([1, 3]), st.integers(1, 6), st.integers(1, 6))
def test_a_grid_is_found_for_every_image_that_it_fits(
    strides: tuple[int, ...], n: int, rows: int, columns: int
) -> None:
    height, width = rows * max(strides), columns * max(strides)
    count = n * sum((height // s) * (width // s) for s in strides)
    found = grid_of(count, height, width)
    assert found is not None
    assert count == found[1] * sum((height // s) * (width // s) for s in found[0])


@given(st.lists(st.tuples(st.text(max_size=12), st.lists(st.one_of(st.none(), st.integers(1, 9000)), max_size=5)),
                max_size=5), st.one_of(st.none(), st.integers(1, 90)))  # fmt: skip
def test_any_outputs_are_read_or_not_and_never_crash(
    outputs: list[tuple[str, list[int | None]]], n: int | None
) -> None:
    infos = tuple(TensorInfo(name, "float32", tuple(shape)) for name, shape in outputs)
    for reading in readings(Question(infos, n, (640, 640))):
        assert reading.head in HEADS
        assert set(reading.roles.values()) <= {name for name, _ in outputs}
