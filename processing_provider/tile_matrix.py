"""Where the tiles of a tiled service begin: its pixels are only read as they are on the grid that they were cut on.

QGIS knows it and does not tell, so the service is asked once more, with the layer's own credentials, which stay in
QGIS. All maps of the web share one scheme; there nobody need be asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qgis.core import (
    QgsBlockingNetworkRequest,
    QgsCoordinateReferenceSystem,
    QgsProviderRegistry,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtNetwork import QNetworkRequest
from qgis.PyQt.QtXml import QDomDocument, QDomElement

from ..inference.errors import RasterOpenError

WORLD = 20037508.342789244
"""Half the width of Web Mercator's square world, in metres."""
TILE = 256
MERCATOR = "EPSG:3857"

_TIME_LIMIT = 15_000
"""Milliseconds."""
_NEAR = 1e-3


@dataclass(frozen=True)
class Matrix:
    """The tiles of one resolution, as the service describes them; which axis comes first is not settled."""

    scale: float
    first: float
    second: float


def web_zoom(side: float, crs: QgsCoordinateReferenceSystem) -> int | None:
    """Give the zoom level of pixels in the scheme that all maps of the web share; None in another scheme."""
    if crs.authid() != MERCATOR or side <= 0:
        return None
    zoom = math.log2(2 * WORLD / (TILE * side))
    return round(zoom) if abs(zoom - round(zoom)) < _NEAR else None


def matrix_corners(layer: QgsRasterLayer, sides: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """Give the upper left corner of the tiles of each resolution, in the layer's coordinate reference system.

    Args:
        layer: A tiled layer.
        sides: Sides of its pixels, finest first.

    Raises:
        RasterOpenError: the service does not say it.
    """
    if all(web_zoom(side, layer.crs()) is not None for side in sides):
        return ((-WORLD, WORLD),) * len(sides)
    parts = QgsProviderRegistry.instance().decodeUri(layer.providerType(), layer.source())
    if layer.providerType() == "arcgismapserver":
        corner = _arcgis_corner(_asked(layer, str(parts.get("url", "")) + "?f=json"))
        return (corner,) * len(sides)
    text = _asked(layer, str(parts.get("url", "")))
    matrices = sorted(_matrices(text, str(parts.get("tileMatrixSet", ""))), key=lambda matrix: matrix.scale)
    if len(matrices) != len(sides):
        raise _untold(layer)
    return tuple(_corner(matrix, layer.crs(), layer.extent()) for matrix in matrices)


def _corner(matrix: Matrix, crs: QgsCoordinateReferenceSystem, extent: QgsRectangle) -> tuple[float, float]:
    """Put x first. Not every service keeps to the order of the reference system: what lies at the extent is right."""
    orders = [(matrix.first, matrix.second), (matrix.second, matrix.first)]
    if crs.hasAxisInverted():
        orders.reverse()
    slack = max(extent.width(), extent.height()) * 1e-6
    for x, y in orders:
        if x <= extent.xMaximum() + slack and y >= extent.yMinimum() - slack:
            return x, y
    return orders[0]


def _matrices(text: str, name: str) -> Iterator[Matrix]:
    """Give the matrices of a set from a WMTS's capabilities."""
    document = QDomDocument()
    document.setContent(text, True)
    for contents in _children(document.documentElement(), "Contents"):
        for element in _children(contents, "TileMatrixSet"):
            if _text_of(element, "Identifier") == name:
                yield from _matrices_in(element)


def _matrices_in(element: QDomElement) -> Iterator[Matrix]:
    for matrix in _children(element, "TileMatrix"):
        numbers = [float(part) for part in _text_of(matrix, "TopLeftCorner").split()]
        if len(numbers) == 2:
            yield Matrix(float(_text_of(matrix, "ScaleDenominator")), *numbers)


def _children(element: QDomElement, name: str) -> Iterator[QDomElement]:
    child = element.firstChildElement()
    while not child.isNull():
        if child.localName() == name:
            yield child
        child = child.nextSiblingElement()


def _text_of(element: QDomElement, name: str) -> str:
    return next((str(child.text()).strip() for child in _children(element, name)), "")


def _arcgis_corner(text: str) -> tuple[float, float]:
    origin = json.loads(text)["tileInfo"]["origin"]
    return float(origin["x"]), float(origin["y"])


def _asked(layer: QgsRasterLayer, address: str) -> str:
    """Ask the service with the layer's credentials, from QGIS's cache where that has it.

    Raises:
        RasterOpenError: it does not answer.
    """
    request = QNetworkRequest(QUrl(address))
    request.setTransferTimeout(_TIME_LIMIT)
    request.setAttribute(
        QNetworkRequest.Attribute.CacheLoadControlAttribute, QNetworkRequest.CacheLoadControl.PreferCache
    )
    blocking = QgsBlockingNetworkRequest()
    found = re.search(r"authcfg='?([A-Za-z0-9]+)", layer.source())
    if found:
        blocking.setAuthCfg(found.group(1))
    if blocking.get(request) != QgsBlockingNetworkRequest.ErrorCode.NoError:
        raise _untold(layer)
    return bytes(blocking.reply().content()).decode("utf-8", "replace")


def _untold(layer: QgsRasterLayer) -> RasterOpenError:
    return RasterOpenError(
        f"The tiled service of the layer '{layer.name()}' does not say where its tiles begin.",
        hint="Set AS_DISPLAYED: QGIS draws the layer then, at any cell size.",
    )
