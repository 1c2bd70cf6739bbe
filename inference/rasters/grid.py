"""The grid of pixels that a raster is read on: its own, one of square pixels, snapped, or one that several share."""

from __future__ import annotations

import math
from typing import Any

from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.vrt import WarpedVRT

from ..errors import RasterOpenError
from .source import GridRequest, TargetGrid

_SQUARE_TOLERANCE = 0.01
"""Share by which a pixel's sides may differ and still count as equal."""
_SAME = 1e-9
"""Share of a pixel by which grids may differ and still be one."""
PICTURE = Affine(1, 0, 0, 0, -1, 0)
"""Where QGIS shows a picture without georeference: a pixel is a unit, its upper left corner is the origin, y is up.

Source: QgsGdalProvider's transform where GDAL gives none.
"""
ANY_PLANE = CRS.from_epsg(3857)
"""For pictures that are resampled: GDAL wants some plane to do it in."""
_MOST_PIXELS = 2**31 - 1
"""Of a side: GDAL counts in 32 bits."""


def wanted_grid(transform: Affine, width: int, height: int, crs_wkt: str, request: GridRequest) -> TargetGrid:
    """Give the grid that a request means for a raster: its own where nothing else is asked for.

    Args:
        transform: From the raster's pixels to its map.
        width: Columns of the raster.
        height: Rows.
        crs_wkt: Its coordinate reference system.
        request: What is asked for.

    Raises:
        RasterOpenError: the grid would have too many pixels.
    """
    if request.target is not None:
        return request.target
    across, down = math.hypot(transform.a, transform.d), math.hypot(transform.b, transform.e)
    side = request.cell_size
    if side is None and abs(across - down) > _SQUARE_TOLERANCE * max(across, down):
        side = min(across, down)
    scale_x, scale_y = (side / across, side / down) if side is not None else (1.0, 1.0)
    shift_x, shift_y = _shift(transform, (scale_x, scale_y), request.snap)
    columns = math.ceil((width + shift_x) / scale_x - 1e-6)
    rows = math.ceil((height + shift_y) / scale_y - 1e-6)
    if max(columns, rows) > _MOST_PIXELS:
        text = f"A cell size of {side:g} gives {columns} x {rows} pixels; that is too many."
        raise RasterOpenError(text, hint="Give a larger cell size, in the unit of the parameter CELL_SIZE_UNIT.")
    moved = transform * Affine.translation(-shift_x, -shift_y) * Affine.scale(scale_x, scale_y)
    return TargetGrid(columns, rows, moved, crs_wkt)


def _shift(transform: Affine, scale: tuple[float, float], snap: tuple[float, float] | None) -> tuple[float, float]:
    """Give the raster's own pixels, less than one of the grid's, by which the grid begins before the raster."""
    if snap is None:
        return 0.0, 0.0
    shifts = []
    for place, step in zip(~transform * snap, scale):
        rest = (-place / step) % 1.0
        shifts.append(0.0 if min(rest, 1 - rest) < 1e-6 else rest * step)
    return shifts[0], shifts[1]


def on_grid(dataset: Any, request: GridRequest, crs: CRS) -> Any:
    """Give an open raster on the grid that is asked for: itself, or a virtual one that is resampled while it is read.

    Args:
        dataset: The raster.
        request: What is asked for.
        crs: The raster's coordinate reference system, which need not be the one that its file states.

    Raises:
        RasterOpenError: the grid would have too many pixels.
    """
    own = PICTURE if is_picture(dataset) else dataset.transform
    grid = wanted_grid(own, dataset.width, dataset.height, crs.to_wkt(), request)
    if is_same_grid(grid, own, dataset.width, dataset.height):
        return dataset
    step = ~own * grid.transform
    target = CRS.from_wkt(grid.crs_wkt)
    scale = max(math.hypot(step.a, step.d), math.hypot(step.b, step.e)) if target == crs else 1.0
    return WarpedVRT(
        dataset,
        crs=target,
        src_crs=crs,
        src_transform=own if is_picture(dataset) else None,
        transform=grid.transform,
        width=grid.width,
        height=grid.height,
        resampling=resampling_of(request.resampling, dataset, scale),
        tolerance=1e-6,  # the same pixel must come out whatever window it is read with
        add_alpha=dataset.nodata is None and ColorInterp.alpha not in dataset.colorinterp,
    )


def is_picture(dataset: Any) -> bool:
    """Tell whether a raster has no place on a map: a photo, a scan, a drawing."""
    has_place = dataset.transform != Affine.identity() or dataset.crs is not None or dataset.gcps[0] or dataset.rpcs
    return not has_place


def is_same_grid(grid: TargetGrid, transform: Affine, width: int, height: int) -> bool:
    """Tell whether a raster's own pixels are the grid's."""
    if (grid.width, grid.height) != (width, height):
        return False
    step = ~transform * grid.transform
    own = (1, 0, 0, 0, 1, 0)
    reach = (1, 1, width, 1, 1, height)  # a difference in scale adds up along a side
    return all(abs(value - wanted) * max(reach[i], 1) < 1e-3 if i in (2, 5) else abs(value - wanted) < _SAME
               for i, (value, wanted) in enumerate(zip(step[:6], own)))  # fmt: skip


def resampling_of(wanted: str, dataset: Any, scale: float) -> Resampling:
    """Give rasterio's name of a resampling.

    Args:
        wanted: One of `job.RESAMPLINGS`.
        dataset: The raster that is resampled.
        scale: Length of the new pixels' sides in old pixels.
    """
    if ColorInterp.palette in dataset.colorinterp:
        return Resampling.nearest  # the mean of two entries of a colour table is a third colour
    if wanted != "auto":
        return Resampling[wanted]
    return Resampling.average if scale > 1.5 else Resampling.bilinear
