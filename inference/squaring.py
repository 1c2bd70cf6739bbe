"""Right angles: outlines of buildings whose walls meet at right angles, from outlines that follow pixels.

Source:
    Own. The main direction is that of the edges with their directions counted modulo 90 degrees, as a mean over angles
    times four: Mardia, Jupp, "Directional Statistics" (2000), section 1.2, on axial data.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import ObjectArray, of_dimension

Points = NDArray[np.complex128]

_STEPS = 1.5
"""Pixels: the steps along a slanting edge, and a network's unrest, lie within this of the wall."""
_LEAST_OVERLAP = 0.8
_FEWEST_WALLS = 4


def square(shapes: ObjectArray, otherwise: ObjectArray, tolerance: float = 0.0) -> ObjectArray:
    """Give outlines whose edges have two directions, at right angles to each other.

    Each edge of a simplified outline is laid on one of two axes, the main direction and the one across; neighbours on
    the same axis become one wall at their mean place, and walls meet in corners.

    Shape:
        shapes (N,) polygons and multipolygons; otherwise (N,), given where the squared outline covers the object badly
        (intersection over union below 0.8), as with trees and round tanks; gives (N,).

    Args:
        shapes: The objects.
        otherwise: The outlines to fall back to.
        tolerance: Pixels by which a wall may miss the outline; at least 1.5.
    """
    result = otherwise.copy()
    simple = shapely.simplify(shapes, max(tolerance, _STEPS))
    for index, (shape, rough) in enumerate(zip(shapes, simple)):
        squared = shapely.union_all([_squared(part) for part in shapely.get_parts(rough)])
        area = of_dimension(squared, 2)
        if not area.is_empty and _covers_well(area, shape):
            result[index] = area
    return result


def _covers_well(squared: shapely.Geometry, shape: shapely.Geometry) -> bool:
    common = shapely.intersection(squared, shape).area
    return bool(common >= _LEAST_OVERLAP * (squared.area + shape.area - common))


def _squared(polygon: shapely.Polygon) -> shapely.Geometry:
    """Square a polygon and its holes."""
    rings = [_points(ring) for ring in (polygon.exterior, *polygon.interiors)]
    turn = _direction(rings)
    walls = [_walls(ring / turn) * turn for ring in rings]
    outer, *inner = (shapely.make_valid(shapely.Polygon(_pairs(ring))) for ring in walls)
    return shapely.difference(outer, shapely.union_all(inner)) if inner else outer


def _points(ring: shapely.LinearRing) -> Points:
    coordinates = shapely.get_coordinates(ring)[:-1]
    points: Points = coordinates[:, 0] + 1j * coordinates[:, 1]
    return points


def _pairs(points: Points) -> NDArray[np.float64]:
    return np.stack([points.real, points.imag], axis=1)


def _direction(rings: list[Points]) -> complex:
    """Give the main direction as a complex number of length 1; long edges count for more, by their squared length."""
    edges = np.concatenate([np.roll(ring, -1) - ring for ring in rings])
    edges = edges[edges != 0]
    mean = complex(np.sum(edges**4 / np.abs(edges) ** 2))
    return complex(np.exp(1j * np.angle(mean) / 4))


def _walls(ring: Points) -> Points:
    """Give the corners of a ring whose edges are laid on the axes; of its rectangle where too few walls remain."""
    edges, middles = np.roll(ring, -1) - ring, (np.roll(ring, -1) + ring) / 2
    is_level = np.abs(edges.real) >= np.abs(edges.imag)
    starts = is_level != np.roll(is_level, 1)
    if starts.sum() < _FEWEST_WALLS:
        x0, x1, y0, y1 = ring.real.min(), ring.real.max(), ring.imag.min(), ring.imag.max()
        return np.array([x0 + 1j * y0, x1 + 1j * y0, x1 + 1j * y1, x0 + 1j * y1])
    order = np.roll(np.arange(len(ring)), -int(np.flatnonzero(starts)[0]))
    is_level, wall = is_level[order], np.cumsum(starts[order]) - 1
    length = np.where(is_level, np.abs(edges.real[order]), np.abs(edges.imag[order]))
    place = np.where(is_level, middles.imag[order], middles.real[order])
    places = np.bincount(wall, length * place) / np.bincount(wall, length)
    before, wall_is_level = np.roll(places, 1), is_level[starts[order]]
    corners: Points = np.where(wall_is_level, before + 1j * places, places + 1j * before)
    return corners
