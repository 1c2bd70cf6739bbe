"""RasterSource: what the pipeline needs to know of a raster, whatever it is read with."""

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


class RasterSource(Protocol):
    """Pixels by window. Any thread may read; each gets a handle of its own."""

    @property
    def info(self) -> RasterInfo:
        """Describe the raster."""
        ...

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may hang over the raster's edge.

        Returns:
            (C, H, W) pixels in the raster's type, 0 where there are none; (H, W), whether a pixel is valid.

        Raises:
            RasterReadError: the pixels cannot be read.
        """
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...
