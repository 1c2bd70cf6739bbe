"""PixelSource: where a raster's pixels come from, and the grid that they are read on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from ..tiling import Window


@dataclass(frozen=True)
class RasterInfo:
    """A raster as the run sees it: its own pixels, or the square ones of the cell size that was asked for.

    Units/space: `transform` takes (column, row) in pixel-edge convention to map coordinates of `crs_wkt`.
    """

    width: int
    height: int
    n_bands: int
    dtype: str
    transform: Affine
    crs_wkt: str
    block_height: int = 1

    @property
    def cell_size(self) -> tuple[float, float]:
        """Give the lengths of a pixel's two sides in map units."""
        t = self.transform
        return float(np.hypot(t.a, t.d)), float(np.hypot(t.b, t.e))


@dataclass(frozen=True)
class TargetGrid:
    """A grid of pixels that several rasters are brought to.

    Units/space: `transform` takes (column, row) in pixel-edge convention to map coordinates of `crs_wkt`.
    """

    width: int
    height: int
    transform: Affine
    crs_wkt: str


@dataclass(frozen=True)
class GridRequest:
    """The grid of pixels that a raster is to be read on.

    Units/space: cell_size and snap in map units of the raster's coordinate reference system.
    """

    cell_size: float | None = None
    """Side of the square pixels; None: the raster's own, or its shorter side where its own are not square."""
    snap: tuple[float, float] | None = None
    """A point that corners of pixels lie on; None: the raster's own corner."""
    resampling: str = "auto"
    """One of `job.RESAMPLINGS`."""
    target: TargetGrid | None = None
    """The whole grid, where several rasters share one; the others do not count then."""
    is_look: bool = False
    """Nothing will be read: what has no pixels of its own may say any, as long as their edges are its own."""


class PixelSource(Protocol):
    """A raster's pixels as it holds them, in the bands that were asked for. Any thread may read."""

    @property
    def name(self) -> str:
        """Give what messages call it; nothing secret is in it."""
        ...

    @property
    def info(self) -> RasterInfo:
        """Describe it; `n_bands` counts the bands that were asked for."""
        ...

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read; one where a colour table stands for three."""
        ...

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels are colours of a colour table."""
        ...

    @property
    def nodata(self) -> float | None:
        """Give the value that stands for no data, None where none does."""
        ...

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window that lies inside.

        Returns:
            (C, H, W) pixels; (C, H, W), whether each is one.

        Raises:
            RasterReadError: they cannot be read.
        """
        ...

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band, spread over the whole raster, the same each time.

        Raises:
            RasterReadError: they cannot be read.
        """
        ...

    def identity(self) -> list[Any] | None:
        """Give JSON values that tell this content from a changed one; None where nothing does."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...
