"""An empty raster with the cells of an image service, for parameters that look at a layer's cells and at nothing else.

QGIS shows an image service at whatever size the window has, and does not know the size of its own cells.
"""

from __future__ import annotations

import hashlib
from typing import Any

from osgeo import gdal, osr
from qgis.core import QgsCoordinateReferenceSystem

from ..inference.errors import RasterOpenError
from ..inference.net.http import HttpClient
from ..inference.net.portal import Reference
from .raster_source import SourceRaster
from .server_source import ServerSource, described

_LONGEST = 2**31 - 1


def grid_raster(url: str, client: HttpClient) -> str:
    """Give the path, in GDAL's memory, of an empty raster with the extent and the cells of an image service.

    Args:
        url: Its address, ending in /ImageServer.
        client: What asks it.

    Raises:
        RasterOpenError: the service does not tell its cells.
        NetworkError, ServiceError, CredentialError: it cannot be asked.
    """
    raster = described(ServerSource(Reference("url", url)), client)
    if not raster.cell_size > 0 or raster.extent.isEmpty():
        raise RasterOpenError(
            f"The service '{url}' does not tell the size of its cells.",
            hint="Name another image service or a raster file, or give the cell size as a number.",
        )
    return _written(raster)


def _written(raster: SourceRaster) -> str:
    extent, side = raster.extent, raster.cell_size
    wkt = raster.crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT2_2019)
    n_columns, n_rows = (min(max(round(length / side), 1), _LONGEST) for length in (extent.width(), extent.height()))
    key = repr((wkt, extent.toString(17), side)).encode()
    path = f"/vsimem/kestrel-grid-{hashlib.sha256(key).hexdigest()[:16]}.vrt"
    dataset: Any = gdal.GetDriverByName("VRT").Create(path, n_columns, n_rows, 1, gdal.GDT_Byte)
    reference = osr.SpatialReference()
    reference.ImportFromWkt(wkt)
    dataset.SetSpatialRef(reference)
    dataset.SetGeoTransform((extent.xMinimum(), side, 0.0, extent.yMaximum(), 0.0, -side))
    dataset.FlushCache()
    return path
