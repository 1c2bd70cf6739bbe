"""Overlap: how much of each other two objects cover, for many pairs at once.

Two measures, each between 0 and 1: `iou`, the intersection over the union, and `ios`, the intersection over the smaller
of the two, which is 1 where one object lies inside the other. Both are 0 where an area is missing, as with points and
lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import Detections, FloatArray, ObjectArray

Indices = NDArray[np.intp]

_SKEW = 1e-6
"""Share of its diagonal by which a corner may miss a parallelogram's: corners come from numbers of 32 bits."""
_SLACK = 1 - 1e-9
"""What rounding may take from a bound."""


def ratio(common: FloatArray, areas: FloatArray, others: FloatArray, metric: str = "iou") -> FloatArray:
    """Give the measure for areas (N,), others (N,) that have common (N,) between them."""
    whole = areas + others - common if metric == "iou" else np.minimum(areas, others)
    result: FloatArray = np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
    return result


def overlap_ratio(boxes: FloatArray, others: FloatArray, metric: str = "iou") -> FloatArray:
    """Give the overlap of boxes, pair by pair.

    Shape:
        boxes (N, 4), others (N, 4); gives (N,).
    """
    return ratio(_common(boxes, others), _areas(boxes), _areas(others), metric)


def _areas(boxes: FloatArray) -> FloatArray:
    areas: FloatArray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _common(boxes: FloatArray, others: FloatArray) -> FloatArray:
    width = np.minimum(boxes[:, 2], others[:, 2]) - np.maximum(boxes[:, 0], others[:, 0])
    height = np.minimum(boxes[:, 3], others[:, 3]) - np.maximum(boxes[:, 1], others[:, 1])
    common: FloatArray = np.maximum(width, 0) * np.maximum(height, 0)
    return common


@dataclass(frozen=True, eq=False)
class Extents:
    """What pairs of detections are measured with.

    Shape:
        boxes (N, 4), the bounds; areas (N,) of the objects themselves; shapes (N,) or None where the boxes are the
        objects; corners (N, 4, 2) of those shapes that are parallelograms, rotated boxes among them, the others NaN.
    """

    boxes: FloatArray
    areas: FloatArray
    shapes: ObjectArray | None = None
    corners: FloatArray | None = None

    def overlap(self, i: Indices, j: Indices, metric: str, above: float) -> FloatArray:
        """Give the overlap of the pairs (i, j), or 0 for one that cannot be above the limit.

        Shape:
            i (K,), j (K,); gives (K,).
        """
        common = _common(self.boxes[i], self.boxes[j])
        areas, others = self.areas[i], self.areas[j]
        if self.shapes is None:
            return ratio(common, areas, others, metric)
        # What two shapes have in common is neither larger than one of them nor than what their bounds have.
        most = np.minimum(common, np.minimum(areas, others))
        near = np.flatnonzero(ratio(most, areas, others, metric) > above * _SLACK)
        result = np.zeros(len(i))
        exact = self._common_of_shapes(i[near], j[near])
        result[near] = ratio(exact, areas[near], others[near], metric)
        return result

    def _common_of_shapes(self, i: Indices, j: Indices) -> FloatArray:
        if self.shapes is None or self.corners is None:
            raise ValueError("boxes have no shapes")
        common = np.empty(len(i))
        is_plain = ~(np.isnan(self.corners[i, 0, 0]) | np.isnan(self.corners[j, 0, 0]))
        plain, other = np.flatnonzero(is_plain), np.flatnonzero(~is_plain)
        common[plain] = parallelogram_common(self.corners[i[plain]], self.corners[j[plain]])
        common[other] = shapely.area(shapely.intersection(self.shapes[i[other]], self.shapes[j[other]]))
        return common


def extents_of(detections: Detections) -> Extents:
    """Prepare detections for `Extents.overlap`."""
    boxes, shapes = detections.boxes, detections.shapes
    if shapes is None:
        return Extents(boxes, _areas(boxes))
    return Extents(boxes, shapely.area(shapes), shapes, _corners(shapes))


def _corners(shapes: ObjectArray) -> FloatArray:
    corners = np.full((len(shapes), 4, 2), np.nan)
    is_ring = (shapely.get_type_id(shapes) == 3) & (shapely.get_num_coordinates(shapes) == 5)
    is_ring &= shapely.get_num_interior_rings(shapes) == 0
    found = shapely.get_coordinates(shapes[is_ring]).reshape(-1, 5, 2)[:, :4]
    miss = np.abs(found[:, 0] + found[:, 2] - found[:, 1] - found[:, 3]).max(axis=1, initial=0)
    size = np.abs(found[:, 2] - found[:, 0]).max(axis=1, initial=0)
    found[(miss > _SKEW * size) | (shapely.area(shapes[is_ring]) == 0)] = np.nan
    corners[is_ring] = found
    return corners


def parallelogram_common(corners: FloatArray, others: FloatArray) -> FloatArray:
    """Give the common area of parallelograms, pair by pair.

    In the frame in which the first one is the unit square, it is the sum over the other's edges of the area between
    edge and x axis, as far as that lies in the square: each a continuous function of the corners, so that edges on
    top of each other need no care.

    Shape:
        corners (N, 4, 2), others (N, 4, 2), in the order of the ring; gives (N,).

    Source:
        Green's theorem; compared with GEOS in tests/inference/test_merge_overlap.py.
    """
    across, along = corners[:, 1] - corners[:, 0], corners[:, 3] - corners[:, 0]
    area = across[:, 0] * along[:, 1] - across[:, 1] * along[:, 0]
    moved = others - corners[:, :1]
    x = (moved[..., 0] * along[:, None, 1] - moved[..., 1] * along[:, None, 0]) / area[:, None]
    y = (moved[..., 1] * across[:, None, 0] - moved[..., 0] * across[:, None, 1]) / area[:, None]
    x_next, y_next = np.roll(x, -1, axis=1), np.roll(y, -1, axis=1)
    run, rise = x_next - x, y_next - y
    low, high = np.clip(x, 0, 1), np.clip(x_next, 0, 1)
    slope = np.divide(rise, run, out=np.zeros_like(run), where=run != 0)
    below = _mean_height(y + (low - x) * slope, y + (high - x) * slope) * (high - low)
    common: FloatArray = np.abs(below.sum(axis=1)) * np.abs(area)
    return common


def _mean_height(first: FloatArray, last: FloatArray) -> FloatArray:
    """Give the mean of a linear function from first to last, cut off below 0 and above 1."""
    low, high = np.clip(first, 0, 1), np.clip(last, 0, 1)
    rise = last - first
    is_flat = np.abs(rise) < 1e-12
    rise = np.where(is_flat, 1.0, rise)
    inside, above = (high - low) / rise, (np.maximum(last, 1) - np.maximum(first, 1)) / rise
    mean: FloatArray = np.where(is_flat, (low + high) / 2, inside * (low + high) / 2 + above)
    return mean
