"""From pixels to outlines: the polygons around what a mask covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes


def outline(covered: NDArray[np.bool_], left: float = 0, top: float = 0) -> Any:
    """Give the outline of the pixels that are True, or None where there are none.

    Pixels that touch at a corner only are different parts, so that each part is a valid polygon.

    Shape:
        covered (H, W), a window whose first pixel has its corner at (left, top).
    """
    rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return None
    part = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    place = Affine.translation(left + columns[0], top + rows[0])
    found = shapes(part.astype(np.uint8), mask=part, connectivity=4, transform=place)
    polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in (shape["coordinates"] for shape, _ in found)]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
