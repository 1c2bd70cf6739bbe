"""What becomes of finished objects on request: simpler outlines, right angles, rectangles, points.

Everything here is done last, in raster pixels: what is one object was settled with the shapes that the model gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import shapely

from .detections import Detections, ObjectArray, shapes_of
from .squaring import square

_AREAS = ("box", "polygon")


def reshaped_geometry(geometry: str, arguments: Mapping[str, Any]) -> str:
    """Give what results are ("box", "polygon", "point", "line"), from what the model's objects are."""
    shape = str(arguments["shape"])
    if shape == "point" or (shape == "box" and geometry in _AREAS):
        return shape
    return geometry


def reshaped(found: Detections, geometry: str, arguments: Mapping[str, Any]) -> Detections:
    """Give objects in the shape that was asked for.

    Args:
        found: Finished objects.
        geometry: What the model's objects are.
        arguments: `shape`, `simplify` and `square_corners` among them.
    """
    wanted = reshaped_geometry(geometry, arguments)
    if wanted == "point":
        return replace(found, shapes=_points(found))
    if wanted == "box":
        return found if found.shapes is None else replace(found, boxes=_bounds(found.shapes), shapes=None)
    if found.shapes is None or geometry != "polygon":
        return found
    shapes, tolerance = found.shapes, float(arguments["simplify"])
    if not tolerance and not arguments["square_corners"]:
        return found
    simple = simplified(shapes, tolerance) if tolerance else shapes
    if arguments["square_corners"]:
        simple = square(shapes, simple, tolerance)
    return replace(found, boxes=_bounds(simple), shapes=simple)


def _bounds(shapes: ObjectArray) -> Any:
    return shapely.bounds(shapes).reshape(-1, 4)


def _points(found: Detections) -> ObjectArray:
    """Give each object's centre, or, where that lies outside of it or in a hole, a point inside; points stay."""
    shapes = shapes_of(found)
    centres = shapely.centroid(shapes)
    is_beside = ~shapely.intersects(shapes, centres)
    points = np.where(is_beside, shapely.point_on_surface(shapes), centres)
    return np.where(shapely.get_dimensions(shapes) == 0, shapes, points)


def simplified(shapes: ObjectArray, tolerance: float) -> ObjectArray:
    """Leave out corners that lie within `tolerance` pixels of the line without them; each shape stays valid.

    Source:
        Douglas, Peucker, "Algorithms for the reduction of the number of points required to represent a digitized line
        or its caricature", Cartographica 10 (1973); GEOS's variant, which keeps rings apart.
    """
    simple: ObjectArray = shapely.simplify(shapes, tolerance, preserve_topology=True)
    is_sound = shapely.is_valid(simple) & (shapely.area(simple) > 0)
    return np.where(is_sound, simple, shapes)
