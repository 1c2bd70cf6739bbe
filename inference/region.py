"""The part of a raster that is searched: a window of pixels, and polygons on the map where there are any."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import FloatArray
from .errors import JobError, RasterOpenError
from .georeference import boxes_to_map, to_map
from .job import DetectionJob
from .rasters.projection import Project, from_common
from .rasters.source import RasterInfo
from .tiling import Tile, Window

OUTSIDE = "outside"
"""The reason, in the context of an error, that extent or mask do not meet the raster."""
_STEPS = 64
"""Parts of an edge that is brought to another coordinate reference system, where it is curved."""


@dataclass(frozen=True)
class Region:
    """Where objects count: their anchor lies in `window` and inside `shape`.

    Units/space: window in raster pixels; shape in map coordinates, None where the window says it all.
    """

    info: RasterInfo
    window: Window
    shape: shapely.Geometry | None

    def touches(self, tile: Tile) -> bool:
        """Tell whether a tile can own an object that counts."""
        if self.shape is None:
            return True
        inner = tile.inner
        box = np.array([[inner.x, inner.y, inner.right, inner.bottom]], np.float64)
        return bool(shapely.intersects(self.shape, shapely.polygons(boxes_to_map(box, self.info.transform)[0])))

    def contains(self, anchors: FloatArray) -> NDArray[np.bool_]:
        """Tell which anchors (N, 2), raster pixels, lie in the polygons."""
        if self.shape is None:
            return np.ones(len(anchors), np.bool_)
        points = to_map(anchors, self.info.transform)
        return np.asarray(shapely.intersects_xy(self.shape, points[:, 0], points[:, 1]), np.bool_)


def make_region(job: DetectionJob, info: RasterInfo) -> Region:
    """Settle which part of the raster a job searches.

    Raises:
        JobError: the extent or the mask lies outside the raster, or the mask cannot be read.
    """
    window = Window(0, 0, info.width, info.height)
    shapes = []
    project = from_common(info, job.crs_wkt) if job.extent is not None or job.mask_wkb is not None else None
    if job.extent is not None:
        extent = _projected(shapely.box(*job.extent), project)
        window = window.intersect(_extent_window(extent.bounds, info))
        if project is not None or not _is_axis_aligned(info):
            shapes.append(extent)
    if job.mask_wkb is not None:
        mask = _projected(_mask(job.mask_wkb), project)
        window = window.intersect(_extent_window(mask.bounds, info))
        shapes.append(mask)
    shape = shapely.intersection_all(shapes) if shapes else None
    if window.width == 0 or window.height == 0 or (shape is not None and shape.is_empty):
        raise JobError(
            "The extent or mask lies outside the raster: there is nothing to search.",
            hint="Check that it overlaps the raster, and that its coordinate reference system is right.",
            reason=OUTSIDE,
        )
    if shape is not None:
        shapely.prepare(shape)
    return Region(info, window, shape)


def _projected(shape: shapely.Geometry, project: Project | None) -> shapely.Geometry:
    """Bring a shape to the raster's coordinate reference system; what has no place there lies outside."""
    if project is None:
        return shape
    xmin, ymin, xmax, ymax = shape.bounds
    fine = shapely.segmentize(shape, max(xmax - xmin, ymax - ymin) / _STEPS)
    placed = shapely.transform(fine, project)
    if not np.isfinite(shapely.get_coordinates(placed)).all():
        raise JobError("The extent or mask has no place in the raster's coordinate reference system.", reason=OUTSIDE)
    return shapely.make_valid(placed)


def _is_axis_aligned(info: RasterInfo) -> bool:
    return info.transform.b == 0 and info.transform.d == 0


def _extent_window(extent: tuple[float, float, float, float], info: RasterInfo) -> Window:
    xmin, ymin, xmax, ymax = extent
    corners = np.array([[xmin, ymin], [xmin, ymax], [xmax, ymin], [xmax, ymax]], np.float64)
    try:
        pixels = to_map(corners, ~info.transform)
    except ZeroDivisionError as error:
        raise RasterOpenError("The raster's georeference is damaged: its pixels have no area.") from error
    # A corner on a pixel's edge, to within rounding, does not pull in the neighbouring pixel.
    low, high = pixels.min(axis=0) + 1e-6, pixels.max(axis=0) - 1e-6
    limits = np.array([info.width, info.height])
    low, high = np.clip(np.floor(low), 0, limits), np.clip(np.ceil(high), 0, limits)
    x, y, right, bottom = (int(v) for v in (*low, *high))
    return Window(x, y, max(0, right - x), max(0, bottom - y))


def _mask(wkb: str) -> shapely.Geometry:
    try:
        mask = shapely.make_valid(shapely.from_wkb(wkb))
    except shapely.errors.GEOSException as error:
        raise JobError(f"The mask cannot be read: {error}.") from error
    if mask.is_empty or not all(math.isfinite(v) for v in mask.bounds) or mask.area == 0:
        raise JobError("The mask has no area.", hint="Choose a layer with polygons.")
    return mask
