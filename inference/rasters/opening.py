"""One way to open a job's rasters, whatever they are."""

from __future__ import annotations

from ..job import RasterItem
from .access import RasterAccess
from .gdal_pixels import GdalPixels
from .picture import PicturePixels
from .source import GridRequest, PixelSource


def open_pixels(item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess) -> PixelSource:
    """Open a raster.

    Args:
        item: The raster.
        bands: Which of its bands, in which order: 0-based numbers, or names.
        grid: The grid of pixels to read.
        access: What reading it needs.

    Raises:
        RasterOpenError: it cannot be opened, or has no usable georeference.
        ModelIncompatibleError: it lacks a band, or its type cannot be used.
    """
    return _OPENERS[item.kind](item, bands, grid, access)


def _open_gdal(item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess) -> PixelSource:
    return GdalPixels(item, bands, grid)


_OPENERS = {"gdal": _open_gdal, "picture": PicturePixels}
