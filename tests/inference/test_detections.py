from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.detections import (
    Detections,
    concatenate,
    from_bytes,
    make_detections,
    no_detections,
    to_bytes,
)


@st.composite
def detections(draw: st.DrawFn) -> Detections:
    n = draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, size = random.normal(0, 1e5, (n, 2)), random.exponential(30, (n, 2))
    return make_detections(np.hstack([low, low + size]), random.random(n), random.integers(0, 9, n),
                           random.normal(0, 1e5, (n, 2)))  # fmt: skip


def assert_equal(expected: Detections, actual: Detections) -> None:
    for name in ("boxes", "scores", "labels", "anchors"):
        first, second = getattr(expected, name), getattr(actual, name)
        assert (first.dtype, first.shape) == (second.dtype, second.shape)
        assert np.array_equal(first, second)


@given(detections())
def test_packing_loses_nothing(found: Detections) -> None:
    assert_equal(found, from_bytes(to_bytes(found)))


@given(st.lists(detections(), max_size=4))
def test_joined_detections_can_be_taken_apart_again(parts: list[Detections]) -> None:
    joined = concatenate(parts)
    start = 0
    for part in parts:
        assert_equal(part, joined.take(np.arange(start, start + len(part))))
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
