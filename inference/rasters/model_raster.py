"""ModelRaster: a raster as a model sees it. What its pixels become does not depend on where they come from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.definition import InputSpec
from ..tiling import Window
from .source import PixelSource, RasterInfo
from .stretching import BandStretch


class ModelRaster:
    """A raster whose windows may hang over its edge, with the values that the model takes.

    Args:
        pixels: Where they come from.
        spec: The model's input: which values are ordinary, and what is put where there are none.
        stretch: What becomes of the values; None: they stay.
    """

    def __init__(self, pixels: PixelSource, spec: InputSpec, stretch: BandStretch | None = None) -> None:
        """Wrap an open source, which belongs to this object from now on."""
        self._pixels = pixels
        self.stretch = stretch
        self._service, self._pad_value = spec.service, spec.pad_value
        # Stretched, no value is special any more: what was nodata is as black as beyond the raster's edge.
        self._fill = stretch is not None or _fills_invalid(pixels.nodata, spec)
        info = pixels.info
        dtype = info.dtype if stretch is None else stretch.dtype
        self._info = RasterInfo(
            info.width, info.height, info.n_bands, dtype, info.transform, info.crs_wkt, info.block_height
        )

    @property
    def pixels(self) -> PixelSource:
        """Give the source."""
        return self._pixels

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return self._pixels.name

    @property
    def info(self) -> RasterInfo:
        """Describe the raster; the type is that of the values which come out."""
        return self._info

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may hang over the raster's edge.

        Returns:
            (C, H, W) pixels, the model's pad value where there are none; (H, W), whether a pixel is valid.

        Raises:
            RasterReadError: the pixels cannot be read.
        """
        info = self._info
        pixels = np.full((info.n_bands, window.height, window.width), self._pad_value).astype(info.dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        inside = window.intersect(Window(0, 0, info.width, info.height))
        if inside.width == 0 or inside.height == 0:
            return pixels, valid
        rows = slice(inside.y - window.y, inside.bottom - window.y)
        columns = slice(inside.x - window.x, inside.right - window.x)
        part, present = self._pixels.read(inside)
        pixels[:, rows, columns] = self._for_model(part, present)
        valid[rows, columns] = np.any(present, axis=0)
        return pixels, valid

    def _for_model(self, pixels: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[Any]:
        """Give the model's values; pixels without a finite number are taken out of `present`."""
        if np.issubdtype(pixels.dtype, np.floating):
            finite = np.isfinite(pixels)
            present &= finite
            pixels[~finite] = 0
            if self._service:
                pixels = service_numbers(pixels, self._service)
        if self.stretch is not None:
            pixels = self.stretch.apply(pixels)
        if self._fill:
            pixels[~present] = self._pad_value
        return pixels

    def close(self) -> None:
        """Close the source."""
        self._pixels.close()


def service_numbers(reflectance: NDArray[Any], service: str) -> NDArray[Any]:
    """Turn reflectances 0 to 1 into the whole numbers in which an image service delivers them.

    Args:
        reflectance: Pixels of a floating type.
        service: "sentinel" (times 10000) or "landsat" (Collection 2: an offset of -0.2, a factor of 0.0000275).
    """
    if service == "landsat":
        numbers: NDArray[Any] = (np.clip(reflectance, 0, 1) + 0.2) / 0.0000275
    else:
        numbers = np.clip(np.rint(reflectance * 10000), 0, 65535)
    return numbers


def _fills_invalid(nodata: float | None, spec: InputSpec) -> bool:
    """Tell whether invalid pixels become the pad value.

    A nodata value that is an ordinary value for the model (255 in an 8-bit photo, where saturated white looks like
    nodata) stays: the model has seen it in training, and black dots it has not.
    """
    if nodata is None or spec.data_range is None or math.isnan(nodata):
        return True
    low, high = spec.data_range
    return not low <= nodata <= high
