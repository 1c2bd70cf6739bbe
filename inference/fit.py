"""Does the raster suit the model? Warnings with the remedy, where a run would work but find little."""

from __future__ import annotations

from rasterio.crs import CRS
from rasterio.errors import CRSError

from .models.definition import CellSizeRange, ModelDefinition
from .rasters.source import RasterInfo

_TOLERANCE = 1.25
"""Factor beyond the training range that a network bears without much loss."""


def fit_warnings(definition: ModelDefinition, info: RasterInfo) -> list[str]:
    """Give what the user should know before waiting for the result."""
    expected = _in_metres(definition.cell_size)
    actual = _cell_in_metres(info)
    if expected is None or actual is None:
        return []
    low, high = expected
    if low / _TOLERANCE <= actual <= high * _TOLERANCE:
        return []
    unit = actual / info.cell_size[0]
    return [
        f"The pixels are {actual:.3g} m wide, and the model was trained on {low:.3g} to {high:.3g} m: "
        f"it will find little. Set CELL_SIZE to {(low * high) ** 0.5 / unit:.2g}."
    ]


def _in_metres(cell_size: CellSizeRange | None) -> tuple[float, float] | None:
    if cell_size is None:
        return None
    factor = 1.0
    if cell_size.wkid is not None:
        try:
            factor = _metres_of_unit(CRS.from_epsg(cell_size.wkid)) or 0.0
        except CRSError:
            return None
    return (cell_size.minimum * factor, cell_size.maximum * factor) if factor else None


def _cell_in_metres(info: RasterInfo) -> float | None:
    factor = _metres_of_unit(CRS.from_wkt(info.crs_wkt))
    return info.cell_size[0] * factor if factor else None


def _metres_of_unit(crs: CRS) -> float | None:
    """Give the length of a projected system's unit; None for degrees, whose length changes over the map."""
    return float(crs.linear_units_factor[1]) if crs.is_projected else None
