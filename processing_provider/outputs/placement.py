"""Placement: from the coordinate reference system of the objects to the one of an output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsGeometry,
)

from ...inference.errors import OutputError

_HALF_THE_WORLD = 180.0
_WAY_OUT = "Choose another coordinate reference system for the output, or leave it empty."


@dataclass(frozen=True)
class Placement:
    """The way from the raster's coordinate reference system to the output's.

    Attributes:
        source: Of the objects as the worker hands them over: the raster's.
        target: Of the output; one that is not valid: the same as `source`.
        transforms: The project's choices of transformations.
    """

    source: QgsCoordinateReferenceSystem = field(default_factory=QgsCoordinateReferenceSystem)
    target: QgsCoordinateReferenceSystem = field(default_factory=QgsCoordinateReferenceSystem)
    transforms: QgsCoordinateTransformContext = field(default_factory=QgsCoordinateTransformContext)

    @property
    def crs(self) -> QgsCoordinateReferenceSystem:
        """Give the coordinate reference system of the output."""
        return self.target if self.target.isValid() else self.source

    def mover(self) -> Callable[[QgsGeometry], None]:
        """Give a function that moves a geometry to the output's coordinate reference system, in place.

        Raises:
            OutputError: there is no way between the two systems; the function: a geometry has no place in the output's.
        """
        if self.crs == self.source:
            return lambda geometry: None
        transform = QgsCoordinateTransform(self.source, self.crs, self.transforms)
        names = f"from {_name(self.source)} to {_name(self.crs)}"
        if not (self.source.isValid() and transform.isValid()):
            raise OutputError(f"The objects cannot be transformed {names}.", hint=_WAY_OUT)

        def move(geometry: QgsGeometry) -> None:
            try:
                is_moved = geometry.transform(transform) == Qgis.GeometryOperationResult.Success
                if self.crs.isGeographic():
                    make_whole(geometry)
                reason = "no reason was given"
            except QgsCsException as error:
                is_moved, reason = False, str(error).strip().splitlines()[0]
            box = geometry.boundingBox()
            if not (is_moved and math.isfinite(box.width() + box.height())):
                raise OutputError(f"An object cannot be transformed {names}: {reason}.", hint=_WAY_OUT)

        return move


def make_whole(geometry: QgsGeometry) -> None:
    """Put an object that lies across the date line together again, at longitudes beyond 180 degrees.

    Its corners come out at both ends of the world: drawn as they are they would span all of it.
    """
    if geometry.boundingBox().width() <= _HALF_THE_WORLD:
        return
    for number, point in enumerate(list(geometry.vertices())):
        if point.x() < 0:
            geometry.moveVertex(point.x() + 360, point.y(), number)


def _name(crs: QgsCoordinateReferenceSystem) -> str:
    return crs.userFriendlyIdentifier() if crs.isValid() else "no coordinate reference system"
