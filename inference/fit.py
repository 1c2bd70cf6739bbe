"""Does the raster suit the model? Warnings with the remedy, where a run would work but find little."""

from __future__ import annotations

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform

from .georeference import to_map
from .models.definition import CellSizeRange, ModelDefinition
from .models.fit_rules import Unit, cell_size_problem, ground_side, range_in_metres
from .rasters.source import RasterInfo


def fit_warnings(definition: ModelDefinition, info: RasterInfo) -> list[str]:
    """Give what the user should know before waiting for the result."""
    place = ground_cell(info)
    unit = _unit(definition.cell_size)
    if definition.cell_size is None or unit is None or place is None:
        return []
    actual, latitude = place
    low, high = range_in_metres(definition.cell_size, unit, latitude)
    problem = cell_size_problem(low, high, actual, info.cell_size[0])
    return [problem.text] if problem else []


def _unit(cell_size: CellSizeRange | None) -> Unit | None:
    if cell_size is None or cell_size.wkid is None:
        return Unit()
    for authority in ("EPSG", "ESRI"):
        try:
            crs = CRS.from_authority(authority, cell_size.wkid)
        except CRSError:
            continue
        return Unit(float(crs.linear_units_factor[1])) if crs.is_projected else Unit(is_degree=True)
    return None


def ground_cell(info: RasterInfo) -> tuple[float, float] | None:
    """Give a pixel's side on the ground in metres, and its latitude, at the raster's centre."""
    x, y = info.width / 2, info.height / 2
    points = to_map(np.array([[x, y], [x + 1, y], [x, y + 1]]), info.transform)
    try:
        lon, lat = transform(CRS.from_wkt(info.crs_wkt), CRS.from_epsg(4326), *points.T.tolist())
    except (CRSError, CPLE_BaseError):
        return None  # a building site's own system, for example, has no place on the globe
    size = ground_side(lon, lat)
    return None if size is None else (size, lat[0])
