"""Overlap of boxes, rotated boxes and outlines against GEOS."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.candidates import make_index
from kestrel.inference.detections import make_detections
from kestrel.inference.overlap import extents_of, overlap_ratio, parallelogram_common


def turned(x: np.ndarray, y: np.ndarray, w: np.ndarray, h: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Give the corners (N, 4, 2) of rectangles around (x, y)."""
    c, s = np.cos(angle), np.sin(angle)
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2
    dx, dy = signs[:, 0] * w[:, None], signs[:, 1] * h[:, None]
    return np.stack(
        [x[:, None] + dx * c[:, None] - dy * s[:, None], y[:, None] + dx * s[:, None] + dy * c[:, None]], -1
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([np.float32, np.float64]))
def test_the_common_area_of_rotated_boxes_is_that_of_geos(seed: int, kind: type) -> None:
    random = np.random.default_rng(seed)
    n = 60
    values = [
        *random.uniform(0, 10, (2, n)),
        *random.uniform(0.5, 12, (2, n)),
        random.choice([0, 0.3, np.pi / 4, 3], n),
    ]
    first = turned(*values)
    # The same again, the same but for a hair, turned by a quarter, moved along an edge, mirrored.
    values[0][20:] += random.choice([0, 1e-9, 1e-7, 1, 4], n - 20)
    values[4][30:] += random.choice([0, 1e-9, 1e-7, np.pi / 2, 0.2], n - 30)
    second = turned(*values)
    second[50:] = second[50:, ::-1]
    first, second = first.astype(kind).astype(float) + 5e5, second.astype(kind).astype(float) + 5e5
    expected = shapely.area(shapely.intersection(shapely.polygons(first), shapely.polygons(second)))
    assert np.allclose(expected, parallelogram_common(first, second), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_shapes_of_all_kinds_are_measured_by_their_areas(metric: str) -> None:
    rectangle = shapely.box(0, 0, 10, 10)
    shapes = [
        rectangle, shapely.Polygon([(5, -3), (13, 5), (5, 13), (-3, 5)]), rectangle.difference(shapely.box(2, 2, 8, 8)),
        shapely.Polygon([(0, 0), (10, 0), (7, 6), (0, 10)]), shapely.box(3, 3, 4, 4), shapely.Point(5, 5),
        shapely.LineString([(0, 0), (9, 9)]), shapely.box(20, 0, 30, 10),
        shapely.union(rectangle, shapely.box(20, 0, 21, 1)),
    ]  # fmt: skip
    n = len(shapes)
    extents = extents_of(make_detections(shapely.bounds(shapes), np.ones(n), np.zeros(n), shapes=shapes))
    i, j = (index.ravel() for index in np.indices((n, n)))
    expected = []
    for a, b in zip(i, j):
        common = shapes[a].intersection(shapes[b]).area
        whole = shapes[a].union(shapes[b]).area if metric == "iou" else min(shapes[a].area, shapes[b].area)
        expected.append(common / whole if whole else 0.0)
    assert np.allclose(expected, extents.overlap(i, j, metric, 0.0))
    above = extents.overlap(i, j, metric, 0.3)
    assert [value > 0.3 for value in expected] == (above > 0.3).tolist()


def test_boxes_that_lie_in_each_other_overlap_wholly_by_the_smaller_one() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [2, 2, 4, 7], [3, 3, 3, 9]])
    assert [1, 0, 0] == overlap_ratio(boxes[[0, 0, 2]], boxes[[1, 2, 2]], "ios").tolist()
    assert [0.1, 0, 0] == overlap_ratio(boxes[[0, 0, 2]], boxes[[1, 2, 2]]).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 50.0, 1e7]))
def test_the_index_finds_each_pair_of_boxes_that_meet_once(seed: int, span: float) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(0, 60))
    corner = random.uniform(-span, span, (n, 2))
    boxes = np.concatenate([corner, corner + random.choice([0.01, 1, 5, 100, 1e6], (n, 2))], axis=1)
    classes = random.integers(0, 3, n)
    index = make_index(boxes, classes, np.ones(n, np.bool_))
    is_half = random.random(n) < 0.5

    def meet(i: int, j: int) -> bool:
        common = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
        return bool(classes[i] == classes[j] and (common > 0).all())

    every = np.arange(n)
    some, others = every[is_half], every[~is_half]
    for found, wanted in (
        (index.within(every), {(i, j) for i in every for j in every[:i] if meet(i, j)}),
        (index.within(some), {(i, j) for i in some for j in some if i > j and meet(i, j)}),
        (index.between(some, others), {(max(i, j), min(i, j)) for i in some for j in others if meet(i, j)}),
    ):  # fmt: skip
        pairs = [(max(i, j), min(i, j)) for part in found for i, j in zip(*(side.tolist() for side in part))]
        assert len(pairs) == len(set(pairs))
        assert wanted <= set(pairs)
        assert all(classes[i] == classes[j] for i, j in pairs)
    assert index.count(every) >= len({(i, j) for i in every for j in every[:i] if meet(i, j)})
