from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kestrel.inference.detections import Detections
from kestrel.inference.detectors.heads.dense import DenseHead, Layout, find_grid
from kestrel.inference.errors import ModelIncompatibleError

STRIDES = [(8, 16, 32), (8,), (4,), (16,), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32), (32,), (8, 16, 32, 64, 128)]


def decode(numbers: NDArray[Any], layout: Layout, threshold: float) -> Detections:
    (found,) = DenseHead(layout, threshold).read({"table": numbers[None]}, 1, (32, 32))
    return found


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("size", [(128, 128), (640, 640), (256, 384)])
def test_the_levels_are_found_from_the_number_of_candidates(
    strides: tuple[int, ...], repeats: int, size: tuple[int, int]
) -> None:
    height, width = size
    expected = [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride in strides
        for _ in range(repeats)
        for row in range(height // stride)
        for column in range(width // stride)
    ]
    grid = find_grid(len(expected), height, width)
    assert max(strides) == grid.stride
    assert expected == [tuple(anchor) for anchor in grid.anchors.tolist()]


@pytest.mark.parametrize(("n", "side"), [(8401, 640), (300, 640), (1, 640), (0, 640), (8400, 650)])
def test_a_number_that_fits_no_grid_is_refused(n: int, side: int) -> None:
    with pytest.raises(ModelIncompatibleError, match=f"{n} candidates for {side} x {side} pixels"):
        find_grid(n, side, side)


@given(st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.3, 0.9]))
def test_a_candidate_is_its_best_class_around_its_centre(
    n_classes: int, has_objectness: bool, seed: int, threshold: float
) -> None:
    random = np.random.default_rng(seed)
    grid = find_grid(16, 32, 32)
    rows = random.random((4 + has_objectness + n_classes, 16)).astype(np.float32)
    result = decode(rows, Layout(n_classes, has_objectness), threshold)
    expected = []
    for index, column in enumerate(rows.T):
        cx, cy, w, h = column[:4].astype(float)
        scores = column[4 + has_objectness :] * (column[4] if has_objectness else np.float32(1))
        if scores.max() > threshold:
            expected.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, scores.max(), scores.argmax(), index))
    assert len(expected) == len(result)
    for box, actual, score, label, anchor in zip(expected, result.boxes, result.scores, result.labels, result.anchors):
        assert box[:4] == pytest.approx(tuple(actual))
        assert (box[4], box[5]) == (score, label)
        assert grid.anchors[box[6]].tolist() == anchor.tolist()


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    rows = np.zeros((5, 16), np.float32)
    rows[4, :3] = (0.5, 0.50001, 0.4)
    assert 1 == len(decode(rows, Layout(1), 0.5))


def test_what_is_no_number_is_not_passed_over_in_silence() -> None:
    rows = np.zeros((5, 16), np.float32)
    rows[4, 2], rows[0, 3], rows[4, 3] = np.nan, np.inf, 0.9
    result = decode(rows, Layout(1), 0.5)
    assert 2 == len(result)
    assert [False, True] == np.isfinite(result.scores).tolist()
    assert [True, False] == np.isfinite(result.boxes).all(axis=1).tolist()


@pytest.mark.parametrize("shape", [(2, 6, 400), (2, 400, 6)])
def test_rows_come_first_whichever_way_round_they_were(shape: tuple[int, ...]) -> None:
    output = np.arange(np.prod(shape)).reshape(shape)
    result = Layout(2).numbers_first(output)
    assert (2, 6, 400) == result.shape
    assert (output if shape[1] == 6 else output.transpose(0, 2, 1)).tolist() == result.tolist()


@pytest.mark.parametrize("shape", [(1, 7, 400), (1, 6), (1, 6, 20, 20), (400, 6)])
def test_an_output_that_does_not_fit_the_classes_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelIncompatibleError, match="with 2 classes one axis should be 6 long"):
        Layout(2).numbers_first(np.zeros(shape))
