"""Layers whose pixels only QGIS can read or draw: what they are, and on which grid of pixels they are read.

    tiled       XYZ, WMTS and tiled services of ArcGIS: one of the resolutions that the server has, on its own pixels
    any grid    WMS, WCS, pictures of ArcGIS, databases, what is drawn: any cell size

The grid covers what is searched and a margin around it, not the whole layer: that may be the whole world.
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsMapLayer,
    QgsProviderRegistry,
    QgsRasterDataProvider,
    QgsRasterLayer,
    QgsRectangle,
)

from ..inference.errors import JobError, RasterOpenError
from ..inference.job import RasterItem
from .pixel_server import DTYPES, PixelSource, ProviderPixels, is_colored, value_bands
from .tile_matrix import TILE, matrix_corners

_SLIVER = 0.05
"""Share of a pixel that does not count at the layer's edge: servers round extents outwards."""
MOST_PIXELS = 2**32
"""Pixels of a layer that are searched without a word about the extent."""
_COARSE = 256
_MARGIN = 256
"""Pixels around what is searched that the model may look at."""
_ALIGNED = 256
"""The grid begins at a multiple of so many pixels: the same pixels, whatever is searched."""
_DIGITS = 16
_SECRET = re.compile("auth|pass|user|key|token|secret|sig|code", re.IGNORECASE)
"""Part of the names of what signs in."""

COLORS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class PictureFacts:
    """What is special about a raster that QGIS reads, as plain values.

    Units/space: resolutions, origin and extent in the layer's coordinate reference system.

    Attributes:
        reference: The job's name for it; tells it from others and holds no secret.
        hosts: Servers behind it.
        resolutions: Sides of pixels that the server has, finest first; empty: any.
        corners: A corner of pixels for each of these; empty: pixels of any size have corners at (0, 0).
        is_tiled: No other resolution is read.
        extent: Where the layer has anything.
        nodata: The value that stands for no data.
        is_drawn: QGIS draws it with its style.
        grid: The grid that is read, once it is settled.
        searched: A rectangle around what is searched, then.
    """

    reference: str
    hosts: tuple[str, ...]
    resolutions: tuple[float, ...]
    corners: tuple[tuple[float, float], ...]
    is_tiled: bool
    extent: tuple[float, float, float, float]
    nodata: float | None = None
    is_drawn: bool = False
    grid: PictureGrid | None = None
    searched: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class PictureGrid:
    """A grid of square pixels. Units/space: left, top and cell_size in the layer's coordinate reference system."""

    left: float
    top: float
    cell_size: float
    width: int
    height: int


def picture_item(
    facts: PictureFacts, name: str, crs: QgsCoordinateReferenceSystem, bands: Any, dtype: str
) -> RasterItem:
    """Name a picture as a job does; with all that reading it needs, once its grid is settled."""
    grid = facts.grid
    if grid is None:
        return RasterItem("picture", facts.reference, name)
    options = {
        "transform": [grid.cell_size, 0.0, grid.left, 0.0, -grid.cell_size, grid.top],
        "width": grid.width,
        "height": grid.height,
        "extent": list(facts.extent),
        "searched": list(facts.searched or facts.extent),
        "bands": list(bands),
        "dtype": dtype,
        "nodata": facts.nodata,
        "block": 2 * TILE if facts.is_tiled else 4 * TILE,
        "any_grid": not facts.is_tiled,
        "is_remote": bool(facts.hosts),
    }
    return RasterItem("picture", facts.reference, name, options, crs.toWkt(Qgis.CrsWktVariant.Preferred))


def picture_facts(layer: QgsRasterLayer) -> PictureFacts:
    """Describe a layer of a provider other than GDAL's.

    Raises:
        RasterOpenError: its objects would have no place on the map, or its values cannot be used.
    """
    provider, name = layer.dataProvider(), shown_name(layer)
    if provider is None or not layer.isValid():
        raise RasterOpenError(f"The layer '{name}' is not valid: QGIS cannot reach its source.")
    if not layer.crs().isValid():
        raise RasterOpenError(
            f"The layer '{name}' has no coordinate reference system.", hint="Set it in the layer's properties."
        )
    if not is_colored(provider):
        _check_types(name, provider)
    kind, source = layer.providerType(), layer.source()
    resolutions = tuple(sorted(provider.nativeResolutions()))
    extent = layer.extent()
    is_tiled = bool(resolutions)
    if is_tiled:
        corners = matrix_corners(layer, resolutions)
    else:
        resolutions = _own_resolution(provider)
        corners = ((extent.xMinimum(), extent.yMaximum()),) * len(resolutions)
    return PictureFacts(
        reference=reference_of(kind, source),
        hosts=hosts_of(kind, source),
        resolutions=resolutions,
        corners=corners,
        is_tiled=is_tiled,
        extent=(extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()),
        nodata=_nodata(provider),
    )


def take_source(layer: QgsRasterLayer, facts: PictureFacts) -> PixelSource:
    """Take a clone of the layer's provider for a run; in the thread that the layer belongs to."""
    return PixelSource(shown_name(layer), ProviderPixels(layer.dataProvider().clone(), facts.is_tiled), facts.hosts)


def band_facts(provider: QgsRasterDataProvider) -> tuple[tuple[str, ...], str]:
    """Give the names of a provider's bands, and their common type as numpy calls it."""
    if is_colored(provider):
        return COLORS, "uint8"
    import numpy as np

    numbers = value_bands(provider)
    dtypes = [DTYPES[provider.dataType(number)] for number in numbers]
    return tuple(_band_name(provider, number) for number in numbers), str(np.result_type(*dtypes))


def shown_name(layer: QgsMapLayer) -> str:
    """Give the layer's name; of one that was given by its address, which may hold a secret, the server's."""
    name = layer.name()
    if "=" in name or "://" in name:
        return ", ".join(hosts_of(layer.providerType(), layer.source())) or str(layer.providerType())
    return str(name)


def reference_of(kind: str, source: str) -> str:
    """Give a name for a source that tells it from others; nothing secret can be read from it."""
    parts = QgsProviderRegistry.instance().decodeUri(kind, source)
    plain = sorted(f"{name}={_without_secrets(str(value))}" for name, value in parts.items() if not _is_secret(name))
    digest = hashlib.sha256("\n".join(plain).encode()).hexdigest()[:_DIGITS]
    return f"{kind}:{','.join(hosts_of(kind, source)) or 'local'}#{digest}"


def _is_secret(name: str) -> bool:
    return _SECRET.search(name) is not None


def _without_secrets(text: str) -> str:
    """Take out of an address what is behind its question mark under a name that sounds secret."""
    address, mark, query = text.partition("?")
    pairs = [pair for pair in query.split("&") if not _is_secret(pair.partition("=")[0])]
    return address + mark + "&".join(pairs)


def hosts_of(kind: str, source: str) -> tuple[str, ...]:
    """Give the servers in a source, with their port where it is told.

    The beginning of a name may stand for several: {switch:a,b}.tile.example.
    """
    parts = QgsProviderRegistry.instance().decodeUri(kind, source)
    texts = [str(value) for value in parts.values()] + [value for _, value in parse_qsl(source)]
    texts += re.findall(r"url='([^']*)'", source)
    hosts = set()
    for text in texts:
        if re.match("https?://", text):
            server = urlsplit(re.sub(r"\{[^}]*\}", "", text)).netloc.rpartition("@")[2]
            if server:
                hosts.add(server.lower().lstrip("."))
    return tuple(sorted(hosts))


def settled(facts: PictureFacts, name: str, cell_size: float, area: QgsRectangle) -> PictureFacts:
    """Give a picture with the grid that it is read on.

    Args:
        facts: The picture.
        name: The layer's.
        cell_size: Side of a pixel; of a tiled source one of its own.
        area: What is searched, in the layer's coordinate reference system.

    Raises:
        JobError: the area has no pixels.
    """
    x, y = _corner(facts, cell_size)
    xmin, ymin, xmax, ymax = facts.extent
    common = area.intersect(QgsRectangle(xmin, ymin, xmax, ymax))
    left = _down((common.xMinimum() - x) / cell_size - _MARGIN, (xmin - x) / cell_size)
    top = _down((y - common.yMaximum()) / cell_size - _MARGIN, (y - ymax) / cell_size)
    right = math.ceil(min((common.xMaximum() - x) / cell_size + _MARGIN, (xmax - x) / cell_size) - _SLIVER)
    bottom = math.ceil(min((y - common.yMinimum()) / cell_size + _MARGIN, (y - ymin) / cell_size) - _SLIVER)
    if right <= left or bottom <= top:
        raise JobError(f"A cell size of {cell_size:g} is too coarse for the layer '{name}'.")
    grid = PictureGrid(x + left * cell_size, y - top * cell_size, cell_size, right - left, bottom - top)
    around = (common.xMinimum(), common.yMinimum(), common.xMaximum(), common.yMaximum())
    return replace(facts, grid=grid, searched=around)


def _corner(facts: PictureFacts, cell_size: float) -> tuple[float, float]:
    """Give a corner of pixels; where the source has none of this size, of those that are nearest."""
    if not facts.resolutions:
        return 0.0, 0.0
    return facts.corners[facts.resolutions.index(nearest(facts.resolutions, cell_size))]


def _down(wanted: float, lowest: float) -> int:
    """Give the first pixel of the grid: a multiple of _ALIGNED, or the first one that the layer has."""
    aligned = math.floor(wanted / _ALIGNED) * _ALIGNED
    return max(aligned, math.floor(lowest + _SLIVER))


def finest_side(facts: PictureFacts) -> float:
    """Give the side of the finest pixels; of a source that has none of its own, one that nobody would search at."""
    if facts.resolutions:
        return facts.resolutions[0]
    xmin, ymin, xmax, ymax = facts.extent
    return max(xmax - xmin, ymax - ymin) / _COARSE


def nearest(resolutions: tuple[float, ...], wanted: float) -> float:
    """Give the resolution that is the fewest times finer or coarser than what is wanted."""
    return min(resolutions, key=lambda resolution: abs(math.log(resolution / wanted)))


def tile_count(facts: PictureFacts, cell_size: float, area: QgsRectangle) -> float:
    """Give how many tiles of 256 pixels an area has."""
    xmin, ymin, xmax, ymax = facts.extent
    common = area.intersect(QgsRectangle(xmin, ymin, xmax, ymax))
    side = cell_size * TILE
    return max(common.width() / side, 1) * max(common.height() / side, 1)


def _own_resolution(provider: QgsRasterDataProvider) -> tuple[float, ...]:
    """Give the side of a source's own pixels, where it says how many it has."""
    if is_colored(provider) or provider.xSize() <= 0 or provider.ySize() <= 0:
        return ()
    return (provider.extent().width() / provider.xSize(),)


def _check_types(name: str, provider: QgsRasterDataProvider) -> None:
    if not value_bands(provider):
        raise RasterOpenError(f"The layer '{name}' has no bands.")
    for number in value_bands(provider):
        if provider.dataType(number) not in DTYPES:
            raise RasterOpenError(f"Band {number} of the layer '{name}' holds values that no model takes.")


def _nodata(provider: QgsRasterDataProvider) -> float | None:
    """Give the value that means no data in all bands."""
    if is_colored(provider):
        return None
    found = {
        provider.sourceNoDataValue(number) if provider.sourceHasNoDataValue(number) else None
        for number in value_bands(provider)
    }
    value = found.pop() if len(found) == 1 else None
    return value if value is not None and math.isfinite(value) else None


def _band_name(provider: QgsRasterDataProvider, number: int) -> str:
    description = provider.bandDescription(number)
    if description:
        return str(description)
    return str(provider.colorInterpretationName(number))
