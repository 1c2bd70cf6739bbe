"""The pixels that the model shall see: their size from a number, a unit or a layer, and the grid that they lie on."""

from __future__ import annotations

import math
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsPointXY,
    QgsRasterLayer,
    QgsRectangle,
    QgsUnitTypes,
)

from ..inference.errors import JobError
from ..inference.models.fit_rules import ground_side
from . import parameters as keys
from .parameter_reader import ParameterReader
from .raster_source import SourceRaster, is_rotated

METRES_A_UNIT = {"Metres": 1.0, "Feet": 0.3048}
_LATITUDES = 89.9
_TRUE_TO_SCALE = 0.01
"""Share by which a projection's own unit may differ from the ground and is taken as it is: half a metre of UTM stays
half a metre."""


def ground_at(crs: QgsCoordinateReferenceSystem, place: QgsPointXY, side: float) -> tuple[float, float] | None:
    """Give the side on the ground in metres of a pixel at a place, and its latitude; None where that is not known.

    Units/space: place and side in units of the coordinate reference system.
    """
    globe = QgsCoordinateReferenceSystem("EPSG:4326")
    corners = [place, QgsPointXY(place.x() + side, place.y()), QgsPointXY(place.x(), place.y() + side)]
    # No context of a project: a shift of datum by some metres does not matter here.
    transform = QgsCoordinateTransform(crs, globe, QgsCoordinateTransformContext())
    if not transform.isValid():
        return None
    try:
        points = [transform.transform(corner) for corner in corners]
    except QgsCsException:
        return None
    longitudes, latitudes = [point.x() for point in points], [point.y() for point in points]
    if not all(math.isfinite(value) for value in (*longitudes, *latitudes)) or abs(latitudes[0]) > _LATITUDES:
        return None
    size = ground_side(longitudes, latitudes)
    return None if size is None else (size, latitudes[0])


def metres_a_unit(crs: QgsCoordinateReferenceSystem, place: QgsPointXY, side: float) -> float | None:
    """Give the metres on the ground that a map unit stands for at a place; None where nobody knows.

    Args:
        crs: The coordinate reference system.
        place: Where, in its units.
        side: Length of what is measured, in its units.
    """
    stated = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), Qgis.DistanceUnit.Meters)
    has_length = not crs.isGeographic() and crs.mapUnits() != Qgis.DistanceUnit.Unknown
    measured = ground_at(crs, place, side)
    if measured is None:
        return stated if has_length else None
    factor = measured[0] / side
    return stated if has_length and abs(factor / stated - 1) <= _TRUE_TO_SCALE else factor


def in_raster_units(
    size: float, unit: str, crs: QgsCoordinateReferenceSystem, area: QgsRectangle, own: float
) -> float | None:
    """Give a cell size in the raster's units; None where its place on the ground is not known.

    Args:
        size: The number.
        unit: One of `parameters.CELL_SIZE_UNITS`.
        crs: The raster's.
        area: What is searched.
        own: The raster's own cell size.
    """
    if unit not in METRES_A_UNIT:
        return size
    factor = metres_a_unit(crs, area.center(), own)
    return None if factor is None else _rounded(size * METRES_A_UNIT[unit] / factor)


def wanted_cell_size(reader: ParameterReader, raster: SourceRaster, area: QgsRectangle) -> float | None:
    """Give the size of the pixels that the model shall see, in the raster's units; None: the raster's own.

    Raises:
        JobError: it cannot be told, or is told twice.
    """
    number = reader.number(keys.CELL_SIZE)
    if number is not None and reader.is_given(keys.CELL_SIZE_LAYER):
        raise JobError(
            "The cell size is given twice, as a number and as a layer.", hint="Empty one of the two parameters."
        )
    if reader.is_given(keys.CELL_SIZE_LAYER):
        return _size_of_layer(reader.raster_layer(keys.CELL_SIZE_LAYER), raster, area)
    if number is None:
        return None
    unit = reader.choice(keys.CELL_SIZE_UNIT)
    size = in_raster_units(number, unit, raster.known_crs, area, raster.cell_size)
    if size is None:
        reason = (
            f"its coordinate reference system {raster.crs.userFriendlyIdentifier()} does not tell how large its units "
        )
        raise JobError(
            f"A cell size in {unit.lower()} cannot be used with the raster '{raster.name}': "
            + ("it is a picture without georeference." if raster.is_picture else f"{reason}are on the ground."),
            hint="Set the unit of the cell size to Raster, and give it in the raster's own units.",
        )
    return size


def _size_of_layer(layer: QgsRasterLayer, raster: SourceRaster, area: QgsRectangle) -> float:
    size = _own_size(layer)
    if layer.crs() == raster.crs:
        return size
    there = _metres_of(layer, size, raster, area)
    here = metres_a_unit(raster.known_crs, area.center(), raster.cell_size)
    if there is None or here is None:
        raise JobError(
            f"The cell size of the layer '{layer.name()}' ({layer.crs().userFriendlyIdentifier()}) cannot be brought "
            f"to the raster '{raster.name}' ({raster.crs.userFriendlyIdentifier()}): how large the units of one of "
            "them are on the ground is not known.",
            hint="Give the cell size as a number.",
        )
    return _rounded(size * there / here)


def _own_size(layer: QgsRasterLayer) -> float:
    sides = layer.rasterUnitsPerPixelX(), layer.rasterUnitsPerPixelY()
    size = min(abs(side) for side in sides)
    if not 0 < size < math.inf or layer.width() <= 0:
        raise JobError(
            f"The layer '{layer.name()}' has no pixels of its own size, so it cannot tell the cell size.",
            hint="Choose a raster file, or give the cell size as a number.",
        )
    return size


def _metres_of(layer: QgsRasterLayer, size: float, raster: SourceRaster, area: QgsRectangle) -> float | None:
    """Give the metres a unit of the layer's: where the search takes place, if the layer reaches there."""
    searched = _moved(area.center(), raster.crs, layer.crs())
    is_there = searched is not None and layer.extent().contains(searched)
    return metres_a_unit(layer.crs(), searched if is_there else layer.extent().center(), size)


def _moved(
    point: QgsPointXY, source: QgsCoordinateReferenceSystem, target: QgsCoordinateReferenceSystem
) -> QgsPointXY | None:
    transform = QgsCoordinateTransform(source, target, QgsCoordinateTransformContext())
    try:
        return transform.transform(point) if transform.isValid() else None
    except QgsCsException:
        return None


def _rounded(size: float) -> float:
    """Give a size without the digits that only the measuring on the globe has made."""
    return float(f"{size:.9g}")


def snap_point(reader: ParameterReader, raster: SourceRaster) -> tuple[float, float] | None:
    """Give a corner of the snap raster's pixels: the one at, or left of and below, the lower left of the input raster.

    ArcGIS aligns the lower left corner. It does not follow the extent, so that a part of the raster gives the same
    objects.

    Raises:
        JobError: the snap raster's pixels do not lie on a grid of the input raster's coordinate reference system.
    """
    if not reader.is_given(keys.SNAP_RASTER):
        return None
    layer = reader.raster_layer(keys.SNAP_RASTER)
    if layer.crs() != raster.crs:
        raise JobError(
            f"The snap raster '{layer.name()}' is in {layer.crs().userFriendlyIdentifier()}, and the input raster "
            f"'{raster.name}' in {raster.crs.userFriendlyIdentifier()}: there is no common grid.",
            hint="Choose a snap raster in the input raster's coordinate reference system.",
        )
    if is_rotated(layer):
        raise JobError(
            f"The snap raster '{layer.name()}' is rotated: its pixels do not lie on a grid of rows and columns.",
            hint="Choose another snap raster.",
        )
    _own_size(layer)
    extent, x, y = layer.extent(), raster.extent.xMinimum(), raster.extent.yMinimum()
    return (
        _aligned(x, extent.xMinimum(), layer.rasterUnitsPerPixelX()),
        _aligned(y, extent.yMinimum(), layer.rasterUnitsPerPixelY()),
    )


def _aligned(value: float, origin: float, step: float) -> float:
    return origin + math.floor((value - origin) / abs(step) + 1e-6) * abs(step)


def chosen_crs(reader: ParameterReader, raster: SourceRaster) -> QgsCoordinateReferenceSystem | None:
    """Give the output's coordinate reference system; None: the raster's.

    Raises:
        JobError: there is no such coordinate reference system, or no way to it from the raster's.
    """
    if not reader.is_given(keys.OUTPUT_CRS):
        return None
    crs: Any = reader.algorithm.parameterAsCrs(reader.parameters, keys.OUTPUT_CRS, reader.context)
    if not crs.isValid():
        raise JobError(
            f"'{reader.parameters.get(keys.OUTPUT_CRS)}' is no coordinate reference system that QGIS knows.",
            hint="Write for example EPSG:4326, or leave the output coordinate reference system empty.",
        )
    there = _moved(raster.extent.center(), raster.crs, crs) if raster.known_crs.isValid() else None
    if there is None or not (math.isfinite(there.x()) and math.isfinite(there.y())):
        source = raster.known_crs.userFriendlyIdentifier() or "no coordinate reference system"
        raise JobError(
            f"Objects of the raster '{raster.name}' ({source}) cannot be converted to {crs.userFriendlyIdentifier()}.",
            hint="Choose another output coordinate reference system, or leave it empty.",
        )
    return QgsCoordinateReferenceSystem(crs)
