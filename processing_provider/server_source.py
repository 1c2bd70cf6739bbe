"""Rasters on ArcGIS servers and portals: named in the parameters, described by their servers once the run has begun."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qgis.core import QgsCoordinateReferenceSystem, QgsRasterLayer, QgsRectangle

from ..inference.errors import RasterOpenError, ServiceError
from ..inference.job import RasterItem
from ..inference.net.catalog import catalog_items
from ..inference.net.http import HttpClient
from ..inference.net.item_files import Progress, raster_of
from ..inference.net.portal import Reference
from .raster_source import SourceRaster, file_raster

SERVICE = re.compile(r"(https?://.+?/(?:ImageServer|MapServer))/?(?:\?.*)?", re.IGNORECASE)
RULES = ("mosaicRule", "renderingRule", "bandIds", "time")
"""Members of a request that say how an image service is read; the worker hands them on."""

_TYPES = {
    "U1": "uint8", "U2": "uint8", "U4": "uint8", "U8": "uint8", "S8": "int8", "U16": "uint16", "S16": "int16",
    "U32": "uint32", "S32": "int32", "F32": "float32", "F64": "float64",
}  # fmt: skip
_COLORS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class ServerSource:
    """A raster that a server has to be asked for.

    Attributes:
        reference: A portal's item, or the address of an image or map service.
        authcfg: Id of the authentication configuration that signs in; empty: the one of the run.
        options: What of `RULES` was given.
        title: What people call it; empty: as the server does.
    """

    reference: Reference
    authcfg: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""

    @property
    def address(self) -> str:
        """Give the address that is asked first."""
        return self.reference.portal or self.reference.value

    @property
    def item(self) -> RasterItem:
        """Give it as a job names it before the server was asked."""
        name = self.title or self.reference.value
        return RasterItem("image_service", self.reference.value, name, dict(self.options))


def service_layer(layer: QgsRasterLayer) -> ServerSource | None:
    """Give the image service behind a layer of QGIS's provider for ArcGIS map services; None where it is none.

    QGIS shows such a service as a picture; the worker reads its values.
    """
    if layer.providerType() != "arcgismapserver":
        return None
    source = layer.dataProvider().uri()
    match = SERVICE.fullmatch(source.param("url").strip())
    if match is None or not match[1].lower().endswith("/imageserver"):
        return None
    return ServerSource(Reference("url", match[1]), source.authConfigId(), title=layer.name())


def described(source: ServerSource, client: HttpClient, progress: Progress | None = None) -> SourceRaster:
    """Ask the server what a raster is; one that is a portal's file is downloaded.

    Raises:
        NetworkError, ServiceError, CredentialError: the server cannot be asked, or says no.
        JobError: the item is no raster.
        RasterOpenError: the server does not say what a run needs to know.
    """
    reference = source.reference
    if reference.kind != "item":
        return _service(reference.value, client, source)
    found = raster_of(client, reference, progress)
    if found.kind == "image_service":
        return _service(found.source, client, replace(source, title=source.title or found.item.title))
    return replace(file_raster(found.source), name=source.title or found.item.title or Path(found.source).name)


def items_of(raster: SourceRaster, client: HttpClient) -> list[SourceRaster]:
    """Give the rasters that an image service is made of, to be searched one by one; itself where it names none.

    Raises:
        NetworkError, CredentialError: the server cannot be asked, or says no.
    """
    if raster.kind != "image_service" or not raster.connection.lower().endswith("/imageserver"):
        return [raster]
    try:
        found = catalog_items(client, raster.connection)
    except ServiceError:
        return [raster]  # one image, or a mosaic whose catalog is not open
    rule = raster.options.get("mosaicRule")
    return [
        replace(raster, name=item.name, extent=QgsRectangle(*item.extent), options={
            **raster.options, **item.options(rule if isinstance(rule, Mapping) else None)})
        for item in found
    ]  # fmt: skip


def _service(address: str, client: HttpClient, source: ServerSource) -> SourceRaster:
    match = SERVICE.fullmatch(address)
    if match is None:
        raise RasterOpenError(f"'{address.split('?')[0]}' is no image or map service.")
    url = match[1]
    data = client.get_json(url)
    place = next((data[key] for key in ("fullExtent", "extent", "initialExtent") if _is_extent(data.get(key))), None)
    if place is None:
        raise RasterOpenError(f"The service '{url}' does not say where on the map it lies.")
    crs = reference_system({**(place.get("spatialReference") or {}), **(data.get("spatialReference") or {})})
    if not crs.isValid():
        raise RasterOpenError(f"The coordinate reference system of the service '{url}' is not known here.")
    is_image = url.lower().endswith("/imageserver")
    n_bands = data.get("bandCount") if is_image else 3
    count = n_bands if isinstance(n_bands, int) and 0 < n_bands < 10_000 else 1
    names = [str(name) for name in data.get("bandNames") or ()]
    names = names if len(names) == count else [f"Band_{number + 1}" for number in range(count)]
    return SourceRaster(
        name=source.title or urlsplit(url).path.split("/")[-2],
        connection=url,
        crs=crs,
        extent=QgsRectangle(*(float(place[key]) for key in ("xmin", "ymin", "xmax", "ymax"))),
        cell_size=_cell_size(data),
        band_names=tuple(names) if is_image else _COLORS,
        has_palette=bool(data.get("hasColormap")) and count == 1,
        dtype=_TYPES.get(str(data.get("pixelType")), "uint8"),
        kind="image_service",
        options=dict(source.options),
    )


def _is_extent(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(value.get(key), (int, float)) for key in ("xmin", "ymin", "xmax", "ymax")
    )


def _cell_size(data: Mapping[str, Any]) -> float:
    """Give a pixel's side in map units: of an image service its own, else of the finest level; 0: there is none."""
    side = data.get("pixelSizeX")
    if isinstance(side, (int, float)) and side > 0:
        return float(side)
    tiles = data.get("tileInfo")
    levels = tiles.get("lods") if isinstance(tiles, Mapping) else None
    sides = [level.get("resolution") for level in levels or () if isinstance(level, Mapping)]
    return min((float(value) for value in sides if isinstance(value, (int, float)) and value > 0), default=0.0)


def reference_system(reference: Mapping[str, Any]) -> QgsCoordinateReferenceSystem:
    """Give the coordinate reference system that ArcGIS names, by number or text; invalid where it is not known."""
    for key in ("latestWkid", "wkid"):
        for authority in ("EPSG", "ESRI"):
            crs = QgsCoordinateReferenceSystem(f"{authority}:{reference.get(key)}")
            if isinstance(reference.get(key), int) and crs.isValid():
                return crs
    for key in ("wkt2", "wkt"):
        crs = QgsCoordinateReferenceSystem.fromWkt(str(reference.get(key) or ""))
        if crs.isValid():
            return crs
    return QgsCoordinateReferenceSystem()
