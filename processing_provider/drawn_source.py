"""Layers as the map shows them: drawn by QGIS block by block, with their styles, one over the other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsMapLayer,
    QgsMapRendererCustomPainterJob,
    QgsMapSettings,
    QgsRasterLayer,
    QgsRectangle,
)
from qgis.PyQt.QtCore import QSize, Qt, QThread
from qgis.PyQt.QtGui import QColor, QImage, QPainter

from ..inference.errors import JobError, RasterOpenError, RasterReadError
from . import parameters as keys
from .parameter_reader import ParameterReader
from .picture_source import COLORS, PictureFacts, finest_side, hosts_of, picture_facts, reference_of, shown_name
from .pixel_server import PixelSource, Stop, from_argb
from .raster_source import SourceRaster

_DPI = 96.0
_BUFFER = 32
"""Pixels around a block whose features are drawn, too: their symbols may reach into it."""


@dataclass
class DrawnPixels:
    """Pixels that QGIS draws.

    Labels are left out: they would cover what is looked for, and be cut at the edges of blocks.

    Attributes:
        layers: Clones that belong to the run, the topmost first.
        crs: Coordinate reference system of the picture.
        transforms: The project's ways between coordinate reference systems.
    """

    layers: list[QgsMapLayer]
    crs: QgsCoordinateReferenceSystem
    transforms: QgsCoordinateTransformContext

    def renew(self) -> None:
        """Do nothing: each picture is drawn anew."""

    def pixels(self, extent: QgsRectangle, width: int, height: int, stop: Stop) -> tuple[Any, Any]:
        """Draw, see PixelMaker."""
        for layer in self.layers:
            if layer.thread() is None:
                layer.moveToThread(QThread.currentThread())
        image = QImage(width, height, QImage.Format.Format_ARGB32_Premultiplied)
        image.fill(Qt.GlobalColor.transparent)
        painter = QPainter(image)
        try:
            job = QgsMapRendererCustomPainterJob(self._settings(extent, width, height), painter)
            with stop.calling(job.cancelWithoutBlocking):
                job.renderSynchronously()
            errors = [error.message for error in job.errors()]
        finally:
            painter.end()
        if errors:
            raise RasterReadError(f"QGIS cannot draw: {'; '.join(errors[:3])}")
        return from_argb(image, is_premultiplied=True)

    def _settings(self, extent: QgsRectangle, width: int, height: int) -> QgsMapSettings:
        settings = QgsMapSettings()
        settings.setLayers(self.layers)
        settings.setDestinationCrs(self.crs)
        settings.setTransformContext(self.transforms)
        settings.setExtent(extent, False)
        settings.setOutputSize(QSize(width, height))
        settings.setOutputDpi(_DPI)
        settings.setBackgroundColor(QColor(Qt.GlobalColor.transparent))
        settings.setExtentBuffer(_BUFFER * extent.width() / width)
        for flag, value in (
            (Qgis.MapSettingsFlag.DrawLabeling, False),
            (Qgis.MapSettingsFlag.Antialiasing, True),
            (Qgis.MapSettingsFlag.UseAdvancedEffects, True),
            (Qgis.MapSettingsFlag.RenderMapTile, True),
        ):
            settings.setFlag(flag, value)
        return settings


def drawn_raster(
    input_layer: QgsRasterLayer | None, layers: Sequence[QgsMapLayer], transforms: QgsCoordinateTransformContext
) -> SourceRaster:
    """Describe what is drawn: of one raster layer, or of several layers of any kind.

    Args:
        input_layer: The raster that gives the coordinate reference system and the pixels, where there is one.
        layers: What is drawn, the topmost first; empty: the raster itself.
        transforms: The project's ways between coordinate reference systems.

    Raises:
        JobError: nothing is to be drawn.
        RasterOpenError: it has no place on the map.
    """
    drawn = list(layers) or ([input_layer] if input_layer is not None else [])
    if not drawn:
        raise JobError("There is no layer to draw.", hint="Choose INPUT, or layers to draw (RENDER_LAYERS).")
    first = input_layer if input_layer is not None else drawn[0]
    crs = first.crs()
    if not crs.isValid():
        raise RasterOpenError(f"The layer '{first.name()}' has no coordinate reference system.")
    extent = _whole(drawn, crs, transforms)
    name = ", ".join(shown_name(layer) for layer in drawn[:3]) + (", …" if len(drawn) > 3 else "")
    sides, corners = _pixels_of(input_layer)
    facts = PictureFacts(
        reference=_reference(drawn),
        hosts=tuple(sorted({host for layer in drawn for host in hosts_of(layer.providerType(), layer.source())})),
        resolutions=sides,
        corners=corners,
        is_tiled=False,
        extent=(extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum()),
        is_drawn=True,
    )
    return SourceRaster(name, "", crs, extent, finest_side(facts), COLORS, has_palette=False, by_qgis=facts)


def take_drawn(
    raster: SourceRaster, layers: Sequence[QgsMapLayer], transforms: QgsCoordinateTransformContext
) -> PixelSource:
    """Take clones of the layers for a run; in the thread that the layers belong to."""
    clones = [layer.clone() for layer in layers]
    for clone in clones:
        clone.moveToThread(None)  # whoever draws takes them into its thread
    hosts = raster.by_qgis.hosts if raster.by_qgis is not None else ()
    return PixelSource(raster.name, DrawnPixels(clones, raster.crs, transforms), hosts)


def is_drawn(reader: ParameterReader) -> bool:
    """Tell whether what QGIS draws is to be searched."""
    return reader.is_given(keys.RENDER_LAYERS) or (reader.flag(keys.AS_DISPLAYED) and reader.is_given(keys.INPUT))


def layers_to_draw(reader: ParameterReader) -> tuple[QgsRasterLayer | None, list[QgsMapLayer]]:
    """Give the input raster, if there is one, and the layers to draw, the topmost first.

    Raises:
        JobError: one cannot be found.
    """
    first = reader.raster_layer(keys.INPUT) if reader.is_given(keys.INPUT) else None
    if not reader.is_given(keys.RENDER_LAYERS):
        return first, []
    layers = reader.algorithm.parameterAsLayerList(reader.parameters, keys.RENDER_LAYERS, reader.context)
    if not layers or any(layer is None or not layer.isValid() for layer in layers):
        raise JobError("One of the layers to draw cannot be opened.", hint="Look at RENDER_LAYERS.")
    return first, list(layers)


def _pixels_of(layer: QgsRasterLayer | None) -> tuple[tuple[float, ...], tuple[tuple[float, float], ...]]:
    """Give sides and corners of a raster's own pixels, so that these are drawn as they are where nobody says more."""
    if layer is None:
        return (), ()
    if layer.providerType() == "gdal":
        extent = layer.extent()
        return (layer.rasterUnitsPerPixelX(),), ((extent.xMinimum(), extent.yMaximum()),)
    facts = picture_facts(layer)
    return facts.resolutions, facts.corners


def _whole(
    layers: Sequence[QgsMapLayer], crs: QgsCoordinateReferenceSystem, transforms: QgsCoordinateTransformContext
) -> QgsRectangle:
    whole = QgsRectangle()
    for layer in layers:
        try:
            part = QgsCoordinateTransform(layer.crs(), crs, transforms).transformBoundingBox(layer.extent())
        except QgsCsException:
            continue  # its extent reaches to where the reference system ends; others, or EXTENT, say where to look
        whole.combineExtentWith(part)
    if whole.isEmpty() or not whole.isFinite():
        raise RasterOpenError("The layers to draw have no extent.", hint="Choose layers with something in them.")
    return whole


def _reference(layers: Sequence[QgsMapLayer]) -> str:
    sources = "\n".join(reference_of(layer.providerType(), layer.source()) for layer in layers)
    return "drawn:" + hashlib.sha256(sources.encode()).hexdigest()[:16]
