"""UprightPixels: a picture that the camera stored turned or mirrored, as people hold it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from ..georeference import to_map
from ..tiling import Window
from .source import PixelSource, RasterInfo

ORIENTATIONS = range(1, 9)


def stored_place(orientation: int, width: int, height: int) -> Affine:
    """Give the way from the upright picture's pixels to the stored ones, both in pixel-edge convention.

    Args:
        orientation: 1 (as stored) to 8.
        width: Columns of the stored picture.
        height: Its rows.

    Source:
        CIPA DC-008 (Exif 2.3), tag Orientation: where the stored row 0 and column 0 lie in the upright picture.
    """
    w, h = width, height
    return {
        1: Affine.identity(),
        2: Affine(-1, 0, w, 0, 1, 0),
        3: Affine(-1, 0, w, 0, -1, h),
        4: Affine(1, 0, 0, 0, -1, h),
        5: Affine(0, 1, 0, 1, 0, 0),
        6: Affine(0, 1, 0, -1, 0, h),
        7: Affine(0, -1, w, -1, 0, h),
        8: Affine(0, -1, w, 1, 0, 0),
    }[orientation]


class UprightPixels:
    """A picture turned upright, see `PixelSource`. Its transform still leads to where the stored picture is shown.

    Args:
        pixels: The picture as it is stored; belongs to this object from now on.
        orientation: EXIF's number, 1 to 8.
    """

    def __init__(self, pixels: PixelSource, orientation: int) -> None:
        """Wrap a picture."""
        self._pixels = pixels
        stored = pixels.info
        self._place = stored_place(orientation, stored.width, stored.height)
        self._is_transposed = self._place.a == 0
        size = (stored.height, stored.width) if self._is_transposed else (stored.width, stored.height)
        self._info = replace(
            stored, width=size[0], height=size[1], transform=stored.transform * self._place,
            block_height=1 if self._is_transposed else stored.block_height,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return self._pixels.name

    @property
    def info(self) -> RasterInfo:
        """Describe the upright picture."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read."""
        return self._pixels.bands

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels are colours of a colour table."""
        return self._pixels.has_palette

    @property
    def nodata(self) -> float | None:
        """Give the value that stands for no data."""
        return self._pixels.nodata

    def identity(self) -> list[Any] | None:
        """Give what tells the content from a changed one."""
        return self._pixels.identity()

    def sample(self) -> list[NDArray[Any]]:
        """Give values of each band."""
        return self._pixels.sample()

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window of the upright picture, see `PixelSource.read`."""
        corners = to_map(np.array([[window.x, window.y], [window.right, window.bottom]], np.float64), self._place)
        (x0, y0), (x1, y1) = np.rint([corners.min(axis=0), corners.max(axis=0)]).astype(int).tolist()
        pixels, present = self._pixels.read(Window(x0, y0, x1 - x0, y1 - y0))
        return self._turned(pixels), self._turned(present)

    def _turned(self, pixels: NDArray[Any]) -> NDArray[Any]:
        place = self._place
        if self._is_transposed:
            pixels = pixels.swapaxes(1, 2)
        flips_x, flips_y = (place.d < 0, place.b < 0) if self._is_transposed else (place.a < 0, place.e < 0)
        return np.ascontiguousarray(pixels[:, :: -1 if flips_y else 1, :: -1 if flips_x else 1])

    def close(self) -> None:
        """Close the picture."""
        self._pixels.close()
