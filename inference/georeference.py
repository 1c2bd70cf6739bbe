"""From raster pixels to map geometry: the one place where the raster's affine transform is applied to results."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from .detections import FloatArray, ObjectArray

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


def shapes_to_wkb(shapes: ObjectArray, transform: Affine) -> list[bytes]:
    """Take shapes from raster pixels to map coordinates and give them as WKB, outer rings counter-clockwise.

    Shape:
        shapes (N,) shapely geometries; gives N byte strings.
    """
    placed = shapely.transform(shapes, lambda points: to_map(points, transform))
    # A north-up raster mirrors: its rows run down, and y runs up.
    return [bytes(wkb) for wkb in shapely.to_wkb(shapely.orient_polygons(placed), byte_order=1)]
