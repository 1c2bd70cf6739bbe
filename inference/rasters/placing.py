"""Where a raster lies on the grid of pixels of another one: exactly on it, or where it has to be resampled."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from affine import Affine
from rasterio.crs import CRS

from ..errors import RasterOpenError
from ..georeference import to_map
from ..tiling import Window
from .projection import projection
from .source import RasterInfo, TargetGrid

_OFF = 1e-3
"""Pixels by which a raster may lie beside the grid and still count as on it."""
_STEPS = 32
"""Parts of each edge: straight in one coordinate reference system is curved in another."""


@dataclass(frozen=True)
class Lattice:
    """A grid of pixels without ends.

    Units/space: `transform` takes (column, row) in pixel-edge convention to map coordinates of `crs_wkt`.
    """

    transform: Affine
    crs_wkt: str

    def at(self, column: int, row: int) -> Affine:
        """Give the transform of a raster that begins at that pixel."""
        return self.transform * Affine.translation(column, row)


@dataclass(frozen=True)
class Placed:
    """A raster on a lattice.

    Attributes:
        window: Its place, in the lattice's pixels; may be negative.
        target: The grid to read it on: the lattice's pixels in that window.
        is_exact: These are its own pixels.
    """

    window: Window
    target: TargetGrid
    is_exact: bool

    def moved(self, columns: int, rows: int) -> Placed:
        """Give it in pixels counted from another one."""
        w = self.window
        return replace(self, window=Window(w.x + columns, w.y + rows, w.width, w.height))


def lattice_of(info: RasterInfo) -> Lattice:
    """Give the lattice of a raster's pixels."""
    return Lattice(info.transform, info.crs_wkt)


def place(info: RasterInfo, lattice: Lattice) -> Placed:
    """Find a raster's place on a lattice.

    Raises:
        RasterOpenError: it has none. The message goes on after the raster's name.
    """
    if bool(info.crs_wkt) != bool(lattice.crs_wkt):
        raise RasterOpenError(
            "has no place beside the first one: only one of them lies on the map.",
            hint="Georeference both, or process the items separately.",
        )
    if not info.crs_wkt:
        raise RasterOpenError(
            "is a picture without georeference, and such have no place beside each other.",
            hint="Process the items separately.",
        )
    is_same_crs = info.crs_wkt == lattice.crs_wkt or CRS.from_wkt(info.crs_wkt) == CRS.from_wkt(lattice.crs_wkt)
    if is_same_crs:
        exact = _exact(info, lattice)
        if exact is not None:
            return Placed(exact, TargetGrid(info.width, info.height, info.transform, info.crs_wkt), True)
    window = _covering(info, lattice, is_same_crs)
    target = TargetGrid(window.width, window.height, lattice.at(window.x, window.y), lattice.crs_wkt)
    return Placed(window, target, False)


def _exact(info: RasterInfo, lattice: Lattice) -> Window | None:
    step = ~lattice.transform * info.transform
    x, y = round(step.c), round(step.f)
    # A difference of scale or direction adds up along the sides.
    corners = np.array([[0, 0], [info.width, 0], [0, info.height], [info.width, info.height]], np.float64)
    off = to_map(corners, step) - corners - [x, y]
    return Window(x, y, info.width, info.height) if np.abs(off).max() < _OFF else None


def _covering(info: RasterInfo, lattice: Lattice, is_same_crs: bool) -> Window:
    """Give the pixels of the lattice that a raster covers."""
    share = np.linspace(0, 1, _STEPS + 1)
    zero, one = np.zeros_like(share), np.ones_like(share)
    edges = np.concatenate([np.stack(pair, -1) for pair in ((share, zero), (share, one), (zero, share), (one, share))])
    points = to_map(edges * [info.width, info.height], info.transform)
    if not is_same_crs:
        points = projection(info.crs_wkt, lattice.crs_wkt)(points)
    places = to_map(points, ~lattice.transform)
    if not np.isfinite(places).all() or np.abs(places).max() > 2**40:
        raise RasterOpenError(
            "lies where the coordinate reference system of the first one does not reach.",
            hint="Process the items separately, or put another raster first.",
        )
    margin = 0 if is_same_crs else 1  # an edge may bulge between the points
    low = np.floor(places.min(axis=0) + 1e-6).astype(int) - margin
    high = np.ceil(places.max(axis=0) - 1e-6).astype(int) + margin
    return Window(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))
