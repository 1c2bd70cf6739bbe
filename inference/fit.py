"""Does the raster suit the model? Warnings with the remedy, where a run would work but find little."""

from __future__ import annotations

import math

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform

from .georeference import to_map
from .models.definition import CellSizeRange, ModelDefinition
from .rasters.source import RasterInfo

_TOLERANCE = 1.25
"""Factor beyond the training range that a network bears without much loss."""
_METRES_A_DEGREE = 111_195.0
"""On a sphere of the Earth's mean radius; the ellipsoid differs by less than one per cent."""


def fit_warnings(definition: ModelDefinition, info: RasterInfo) -> list[str]:
    """Give what the user should know before waiting for the result."""
    expected = _in_metres(definition.cell_size)
    actual = _ground_cell(info)
    if expected is None or actual is None:
        return []
    low, high = expected
    if low / _TOLERANCE <= actual <= high * _TOLERANCE:
        return []
    fitting = (low * high) ** 0.5 / actual * info.cell_size[0]
    return [
        f"The pixels are {actual:.2g} m wide on the ground, and the model was trained on {low:.2g} to {high:.2g} m: "
        f"it will find little. Set CELL_SIZE to {fitting:.2g}."
    ]


def _in_metres(cell_size: CellSizeRange | None) -> tuple[float, float] | None:
    if cell_size is None:
        return None
    factor = 1.0
    if cell_size.wkid is not None:
        try:
            crs = CRS.from_epsg(cell_size.wkid)
        except CRSError:
            return None
        if not crs.is_projected:
            return None  # the length of a degree depends on where the training images lay
        factor = float(crs.linear_units_factor[1])
    return cell_size.minimum * factor, cell_size.maximum * factor


def _ground_cell(info: RasterInfo) -> float | None:
    """Give a pixel's side on the ground in metres, at the raster's centre; None where its place is not known.

    Measured on the globe, since map units are no measure: a metre of Web Mercator is half a metre at 60 degrees.
    """
    x, y = info.width / 2, info.height / 2
    points = to_map(np.array([[x, y], [x + 1, y], [x, y + 1]]), info.transform)
    try:
        lon, lat = transform(CRS.from_wkt(info.crs_wkt), CRS.from_epsg(4326), *points.T.tolist())
    except CRSError:
        return None
    shrink = math.cos(math.radians(lat[0]))
    sides = [math.hypot((lon[i] - lon[0]) * shrink, lat[i] - lat[0]) * _METRES_A_DEGREE for i in (1, 2)]
    size = math.sqrt(sides[0] * sides[1])
    return size if 0 < size < math.inf else None
