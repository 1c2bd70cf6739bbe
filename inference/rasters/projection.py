"""Points of one coordinate reference system in another; straight edges stay straight only where they are short."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, RasterioError
from rasterio.warp import transform

from ..detections import FloatArray
from ..errors import RasterOpenError
from ..georeference import to_map
from .source import RasterInfo

Project = Callable[[FloatArray], FloatArray]
"""Takes points (..., 2) to another coordinate reference system; what has no place there becomes infinite."""

_FAILURES = (RasterioError, CPLE_BaseError)
"""What rasterio raises where PROJ has no place for a point."""
_OFF = 1e-3
"""Share of a pixel by which two coordinate reference systems may differ and still be one."""


def projection(from_wkt: str, to_wkt: str) -> Project:
    """Give the way of points from one coordinate reference system to another.

    Raises:
        RasterOpenError: one of them is not known.
    """
    try:
        source, target = CRS.from_wkt(from_wkt), CRS.from_wkt(to_wkt)
    except CRSError as error:
        raise RasterOpenError(f"has a coordinate reference system that is not known: {error}.") from error

    def project(points: FloatArray) -> FloatArray:
        flat = points.reshape(-1, 2)
        try:
            placed = _transformed(source, target, flat)
        except _FAILURES:  # of one point; the others may have a place
            placed = np.concatenate([_one(source, target, point) for point in flat[:, None]])
        return placed.reshape(points.shape)

    return project


def _transformed(source: CRS, target: CRS, points: FloatArray) -> FloatArray:
    xs, ys = transform(source, target, points[:, 0].tolist(), points[:, 1].tolist())[:2]
    return np.array([xs, ys], np.float64).T


def _one(source: CRS, target: CRS, point: FloatArray) -> FloatArray:
    try:
        return _transformed(source, target, point)
    except _FAILURES:
        return np.full((1, 2), np.inf)


def to_common(info: RasterInfo, crs_wkt: str) -> Project | None:
    """Give the way from a raster's map to the coordinate reference system that several share; None: they are one.

    Args:
        info: The raster.
        crs_wkt: What they share; empty: each has its own.

    Raises:
        RasterOpenError: there is no way. The message goes on after the raster's name.
    """
    if not crs_wkt or crs_wkt == info.crs_wkt:
        return None
    if not info.crs_wkt:
        raise RasterOpenError("has no georeference, and the others have one.", hint="Search it in a run of its own.")
    # Two programs rarely write the same words for it, so the raster's own corners decide.
    project = projection(info.crs_wkt, crs_wkt)
    w, h = info.width, info.height
    corners = to_map(np.array([[0, 0], [w, 0], [0, h], [w, h], [w / 2, h / 2]], np.float64), info.transform)
    placed = project(corners)
    if not np.isfinite(placed).all():
        raise RasterOpenError("lies where the coordinate reference system of the first one does not reach.")
    return None if np.abs(placed - corners).max() < _OFF * min(info.cell_size) else project


def from_common(info: RasterInfo, crs_wkt: str) -> Project | None:
    """Give the way back, see `to_common`."""
    return None if to_common(info, crs_wkt) is None else projection(crs_wkt, info.crs_wkt)
