"""One way to open a job's rasters, whatever they are."""

from __future__ import annotations

from collections.abc import Sequence

from ..events import Canceled
from ..job import RasterItem
from ..net.http import make_client
from .access import RasterAccess
from .arcgis import service_url
from .band_order import same_bands
from .gdal_pixels import GdalPixels
from .image_service import ImageServicePixels
from .map_service import MapServicePixels
from .mosaic import MosaicPixels
from .picture import PicturePixels
from .source import GridRequest, PixelSource
from .upright import UprightPixels
from .virtual_parts import check_parts


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


def open_mosaic(
    items: Sequence[RasterItem], bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess
) -> PixelSource:
    """Open rasters as one; the first one gives coordinate reference system and grid, a later one lies on top.

    Raises:
        RasterOpenError: one cannot be opened, or they do not go together.
        ModelIncompatibleError: one lacks a band, or its type cannot be used.
    """
    if len(items) == 1:
        return open_pixels(items[0], bands, grid, access)
    orders: dict[int, tuple[int | str, ...]] = {}
    names: tuple[str, ...] = ()

    def open_item(number: int, wanted: GridRequest) -> PixelSource:
        nonlocal names
        if access.is_cancelled():
            raise Canceled
        source = open_pixels(items[number], orders.get(number, bands), wanted, access)
        if number in orders or not isinstance(source, GdalPixels):
            return source
        names = names or source.band_names
        orders[number] = same_bands(bands, names, source.band_names)
        if orders[number] == bands:
            return source
        source.close()
        return open_pixels(items[number], orders[number], wanted, access)

    return MosaicPixels(items, grid, open_item)


def _open_gdal(item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess) -> PixelSource:
    check_parts(item.source)
    pixels = GdalPixels(item, bands, grid, access)
    return pixels if pixels.orientation == 1 else UprightPixels(pixels, pixels.orientation)


def _open_service(
    item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess
) -> PixelSource:
    client = make_client(access.secrets, limits=access.limits, is_cancelled=access.is_cancelled, on_wait=access.on_wait)
    is_image = service_url(item).lower().endswith("/imageserver")
    return (ImageServicePixels if is_image else MapServicePixels)(item, bands, grid, client)


_OPENERS = {"gdal": _open_gdal, "image_service": _open_service, "picture": PicturePixels}
