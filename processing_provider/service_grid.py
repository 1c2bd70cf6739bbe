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
from .rest_request.draft import Draft
from .rest_request.spatial_reference import crs_text
from .rest_request.values import as_number, as_object

_LONGEST = 2**31 - 1
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def grid_raster(member: str, url: str, client: HttpClient) -> str:
    """Give the path, in GDAL's memory, of an empty raster with the extent and the cells of an image service.

    Args:
        member: The request's member that names the service.
        url: Its address, ending in /ImageServer.
        client: What asks it.

    Raises:
        JobError, RasterOpenError: the service does not tell its cells.
        NetworkError, ServiceError, CredentialError: it cannot be asked.
    """
    data = client.get_json(url)
    example = "the address of an image service"
    extent = as_object(f"{member}.extent", data.get("extent", data.get("fullExtent")), example)
    x0, y0, x1, y1 = (as_number(f"{member}.extent", extent.get(name)) for name in _CORNERS)
    width, height = (as_number(f"{member}.{name}", data.get(name)) for name in ("pixelSizeX", "pixelSizeY"))
    reference = crs_text(Draft(), member, extent.get("spatialReference", data.get("spatialReference")))
    crs = QgsCoordinateReferenceSystem(reference)
    if not (width > 0 and height > 0 and x1 > x0 and y1 > y0 and crs.isValid()):
        raise RasterOpenError(
            f"The service that the request's member '{member}' names does not tell the size of its cells.",
            hint="Name an image service or a raster file, or give the cell size as a number.",
        )
    n_columns, n_rows = (min(max(round(n), 1), _LONGEST) for n in ((x1 - x0) / width, (y1 - y0) / height))
    return _written(crs, (x0, width, 0.0, y1, 0.0, -height), n_columns, n_rows)


def _written(crs: QgsCoordinateReferenceSystem, transform: tuple[float, ...], n_columns: int, n_rows: int) -> str:
    key = repr((crs.toWkt(), transform, n_columns, n_rows)).encode()
    path = f"/vsimem/kestrel-grid-{hashlib.sha256(key).hexdigest()[:16]}.vrt"
    dataset: Any = gdal.GetDriverByName("VRT").Create(path, n_columns, n_rows, 1, gdal.GDT_Byte)
    reference = osr.SpatialReference()
    reference.ImportFromWkt(crs.toWkt(QgsCoordinateReferenceSystem.WktVariant.WKT2_2019))
    dataset.SetSpatialRef(reference)
    dataset.SetGeoTransform(transform)
    dataset.FlushCache()
    return path
