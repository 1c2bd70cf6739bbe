"""From raster pixels to map geometry: the one place where the raster's affine transform is applied to results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from .detections import FloatArray, ObjectArray

_RING = 5  # points, the first one again at the end
_ANGLE_DIGITS = 6
"""Decimals of a degree: without rounding, what points north is as often 179.999999999999 as 0."""
_WKB_BOX = np.dtype(
    [("order", "u1"), ("type", "<u4"), ("n_rings", "<u4"), ("n_points", "<u4"), ("points", "<f8", (5, 2))]
)


def to_map(points: FloatArray, transform: Affine) -> FloatArray:
    """Take points from raster pixels to map coordinates.

    Shape:
        points (..., 2) column, row in pixel-edge convention; gives (..., 2) x, y.
    """
    column, row = points[..., 0], points[..., 1]
    t = transform
    return np.stack([t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f], axis=-1)


def boxes_to_map(boxes: FloatArray, transform: Affine) -> FloatArray:
    """Give the closed rings of boxes in map coordinates, counter-clockwise whatever the transform's orientation.

    Shape:
        boxes (N, 4); gives (N, 5, 2).
    """
    x0, y0, x1, y1 = boxes.T
    corners = np.stack([np.stack([x0, x0, x1, x1, x0], -1), np.stack([y0, y1, y1, y0, y0], -1)], -1)
    is_counter_clockwise = transform.determinant < 0  # north-up rasters mirror: rows run down, y runs up
    return to_map(corners if is_counter_clockwise else corners[:, ::-1], transform)


def rings_to_wkb(rings: FloatArray) -> list[bytes]:
    """Give polygons of five points as WKB.

    Shape:
        rings (N, 5, 2); gives N byte strings.

    Source:
        OGC 06-103r4, section 8.2: byte order 1 (little endian), type 3 (polygon), number of rings, number of points.
    """
    records: NDArray[Any] = np.empty(len(rings), _WKB_BOX)
    records["order"], records["type"], records["n_rings"], records["n_points"] = 1, 3, 1, 5
    records["points"] = rings
    data, size = records.tobytes(), _WKB_BOX.itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def angles_of(shapes: ObjectArray, transform: Affine) -> FloatArray:
    """Give the directions of turned rectangles on the map: of the long side, clockwise from north, in degrees.

    0 is north to south, 90 is east to west; a side has two ends, so 180 would be 0 again. Of a square's two directions
    it is the smaller one.

    Shape:
        shapes (N,) polygons of four corners in raster pixels, or others, whose smallest rectangle then counts; gives
        (N,), 0 <= angle < 180.
    """
    is_rectangle = shapely.get_num_coordinates(shapes) == _RING
    rectangles = np.where(is_rectangle, shapes, shapely.oriented_envelope(shapes))
    corners = np.array([shapely.get_coordinates(shape)[:3] for shape in rectangles]).reshape(-1, 3, 2)
    corners = to_map(corners, transform)
    sides = np.diff(corners, axis=1)  # (N, 2, 2): two that meet
    lengths = np.hypot(sides[..., 0], sides[..., 1])
    angles = np.round(np.degrees(np.arctan2(sides[..., 0], sides[..., 1])), _ANGLE_DIGITS) % 180
    is_square = np.isclose(lengths[:, 0], lengths[:, 1], rtol=1e-6, atol=0)
    of_long: FloatArray = np.where(lengths[:, 0] > lengths[:, 1], angles[:, 0], angles[:, 1])
    return np.where(is_square, angles.min(axis=1), of_long)


def shapes_to_wkb(
    shapes: ObjectArray, transform: Affine, project: Callable[[FloatArray], FloatArray] | None = None
) -> list[bytes]:
    """Take shapes from raster pixels to map coordinates and give them as WKB, outer rings counter-clockwise.

    Args:
        shapes: The shapes.
        transform: From the raster's pixels to its map.
        project: From its map to another one; None: it is the one.

    Shape:
        shapes (N,) shapely geometries; gives N byte strings.
    """

    def placing(points: FloatArray) -> FloatArray:
        placed = to_map(points, transform)
        return placed if project is None else project(placed)

    placed = shapely.transform(shapes, placing)
    # A north-up raster mirrors: its rows run down, and y runs up.
    return [bytes(wkb) for wkb in shapely.to_wkb(shapely.orient_polygons(placed), byte_order=1)]
