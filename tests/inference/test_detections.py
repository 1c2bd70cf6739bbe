from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.detections import (
    Detections,
    concatenate,
    from_bytes,
    make_detections,
    no_detections,
    shapes_of,
    to_bytes,
)


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, size = random.normal(0, 1e5, (n, 2)), random.exponential(30, (n, 2))
    boxes = np.hstack([low, low + size])
    shapes = [shapely.box(*box).difference(shapely.Point(box[:2]).buffer(3)) for box in boxes]
    attributes = [{"length": float(value), "note": "a'\u00e9"} for value in random.random(n)]
    return make_detections(boxes, random.random(n), random.integers(0, 9, n), random.normal(0, 1e5, (n, 2)),
                           shapes if draw(st.booleans()) else None,
                           attributes if draw(st.booleans()) else None)  # fmt: skip


def assert_equal(expected: Detections, actual: Detections) -> None:
    for name in ("boxes", "scores", "labels", "anchors"):
        first, second = getattr(expected, name), getattr(actual, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert np.array_equal(first, second)
    for name in ("shapes", "attributes"):
        first, second = getattr(expected, name), getattr(actual, name)
        assert (first is None) == (second is None)
        assert first is None or first.tolist() == second.tolist()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:20]])
def test_bytes_of_another_length_are_refused(change: Callable[[bytes], bytes]) -> None:
    found = make_detections([[0, 0, 1, 1]], [1], [0], shapes=[shapely.box(0, 0, 1, 1)], attributes=[{"a": 1}])
    with pytest.raises(ValueError, match=r"\w"):
        from_bytes(change(to_bytes(found)))


@given(detections())
def test_packing_loses_nothing(found: Detections) -> None:
    assert_equal(found, from_bytes(to_bytes(found)))


@given(st.lists(detections(), max_size=4))
def test_joined_detections_can_be_taken_apart_again(parts: list[Detections]) -> None:
    joined = concatenate(parts)
    start = 0
    for part in parts:
        assert_equal(
            make_detections(part.boxes, part.scores, part.labels, part.anchors,
                            None if joined.shapes is None else shapes_of(part),
                            part.attributes if joined.attributes is None or part.attributes is not None
                            else [{}] * len(part)),
            joined.take(np.arange(start, start + len(part))),
        )  # fmt: skip
        start += len(part)
    assert start == len(joined)


@given(detections(), st.integers(-(2**31), 2**31), st.integers(-(2**31), 2**31))
def test_moving_there_and_back_is_the_identity(found: Detections, x: int, y: int) -> None:
    back = found.shift(x, y).shift(-x, -y)
    assert np.allclose(found.boxes, back.boxes, rtol=0, atol=1e-5)
    assert np.allclose(found.anchors, back.anchors, rtol=0, atol=1e-5)


def test_without_anchors_the_centres_serve() -> None:
    found = make_detections(np.array([[0, 2, 10, 6]]), np.array([0.5]), np.array([1]))
    assert [[5.0, 4.0]] == found.anchors.tolist()


def test_nothing_has_the_types_of_something() -> None:
    assert_equal(no_detections(), make_detections(np.empty((0, 4)), np.empty(0), np.empty(0)))
    assert 0 == len(no_detections())


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 4), (1,), (2,), (2, 2)),
        ((2, 4), (2,), (3,), (2, 2)),
        ((2, 4), (2,), (2,), (1, 2)),
        ((2, 3), (2,), (2,), (2, 2)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    boxes, scores, labels, anchors = (np.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="boxes"):
        Detections(boxes, scores.astype(np.float32), labels.astype(np.int32), anchors)


def test_shapes_move_and_grow_with_their_boxes() -> None:
    found = make_detections([[1, 2, 3, 4]], [1], [0], shapes=[shapely.box(1, 2, 3, 4)])
    changed = found.scale(2).shift(10, 20)
    assert changed.shapes is not None
    assert [[12, 24, 16, 28]] == changed.boxes.tolist() == shapely.bounds(changed.shapes).tolist()


def test_shapes_and_attributes_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes or attributes"):
        make_detections([[0, 0, 1, 1]], [1], [0], shapes=[])
