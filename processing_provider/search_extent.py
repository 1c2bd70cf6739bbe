"""The parameter EXTENT -> a rectangle in the raster's coordinate reference system, cut to the raster."""

from __future__ import annotations

import math
from typing import Any

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCsException,
    QgsRectangle,
    QgsReferencedRectangle,
)

from ..inference.errors import JobError
from . import parameters as keys
from .parameter_reader import ParameterReader
from .raster_source import SourceRaster

Rectangle = tuple[float, float, float, float]

_OTHER_WAY = "Give the extent in the raster's coordinate reference system, or search inside the polygons of a mask."


def search_extent(reader: ParameterReader, raster: SourceRaster) -> tuple[Rectangle | None, tuple[str, ...]]:
    """Give the extent in the raster's coordinate reference system, cut to the raster, and what to tell about it.

    Returns:
        xmin, ymin, xmax, ymax; None: all of the raster.

    Raises:
        JobError: it is empty, cannot be converted, or does not meet the raster.
    """
    if not reader.is_given(keys.EXTENT):
        return None, ()
    wanted = _wanted(reader, raster)
    if not (wanted.width() > 0 and wanted.height() > 0):
        raise JobError("The extent is empty.", hint="Draw a larger one, or leave it empty to search the whole raster.")
    common = wanted.intersect(raster.extent)
    if not (common.width() > 0 and common.height() > 0):
        raise JobError(
            f"The extent lies outside the raster '{raster.name}'.",
            hint=f"The raster covers {_described(raster.extent, raster.crs)}.",
        )
    warnings = () if raster.extent.contains(wanted) else ("The extent reaches beyond the raster and was cut to it.",)
    return (common.xMinimum(), common.yMinimum(), common.xMaximum(), common.yMaximum()), warnings


def _wanted(reader: ParameterReader, raster: SourceRaster) -> QgsRectangle:
    """Give the extent in the raster's coordinate reference system.

    QGIS hands an extent that it could not convert on as it was, so that is looked for here.
    """
    algorithm, parameters, context = reader.algorithm, reader.parameters, reader.context
    given = algorithm.parameterAsExtent(parameters, keys.EXTENT, context)
    converted = algorithm.parameterAsExtent(parameters, keys.EXTENT, context, raster.crs)
    crs = algorithm.parameterAsExtentCrs(parameters, keys.EXTENT, context)
    if converted == given and not (_has_crs(parameters.get(keys.EXTENT)) and crs.isValid() and crs != raster.crs):
        return given
    return _converted(given, crs, raster, QgsCoordinateTransform(crs, raster.crs, context.transformContext()))


def _has_crs(value: Any) -> bool:
    return isinstance(value, QgsReferencedRectangle) or (isinstance(value, str) and "[" in value)


def _converted(
    given: QgsRectangle, crs: QgsCoordinateReferenceSystem, raster: SourceRaster, transform: QgsCoordinateTransform
) -> QgsRectangle:
    transform.setBallparkTransformsAreAppropriate(True)
    try:
        found = transform.transformBoundingBox(
            given, Qgis.TransformDirection.Forward, handle180Crossover=raster.crs.isGeographic()
        )
    except QgsCsException:
        found = QgsRectangle(math.nan, math.nan, math.nan, math.nan)
    sides = (found.xMinimum(), found.yMinimum(), found.xMaximum(), found.yMaximum())
    if not all(math.isfinite(side) for side in sides):
        raise JobError(
            f"The extent {given.toString(2)} in {crs.userFriendlyIdentifier()} cannot be converted to "
            f"{raster.crs.userFriendlyIdentifier()}, the coordinate reference system of '{raster.name}'.",
            hint=_OTHER_WAY,
        )
    return found if sides[0] <= sides[2] else _across_date_line(sides, raster)


def _across_date_line(sides: Rectangle, raster: SourceRaster) -> QgsRectangle:
    """Give the part of an extent across the date line that a geographic raster lies in.

    Args:
        sides: West end, south, east end (less than the west end), north, in degrees.
        raster: The raster; its longitudes may go beyond 180.
    """
    west, south, east, north = sides
    parts = [QgsRectangle(west, south, east + 360, north), QgsRectangle(west - 360, south, east, north)]
    met = [part for part in parts if part.intersects(raster.extent)]
    if len(met) > 1:
        raise JobError(
            f"The extent crosses the date line, and the raster '{raster.name}' lies at both sides of it.",
            hint="Search the two sides in two runs, or inside the polygons of a mask.",
        )
    return met[0] if met else parts[0]


def _described(extent: QgsRectangle, crs: QgsCoordinateReferenceSystem) -> str:
    return f"{extent.toString(2)} in {crs.userFriendlyIdentifier()}"
