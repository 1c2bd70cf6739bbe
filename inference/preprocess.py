"""From raster pixels to the network's input, and from the network's boxes back to raster pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .detections import Detections
from .models.definition import InputSpec
from .tiling import Window


@dataclass(frozen=True, eq=False)
class Normalisation:
    """pixel * gain + bias, band by band: the definition's (pixel * scale - mean) / std in one multiplication.

    Shape:
        gain (C, 1, 1) float32, bias (C, 1, 1) float32.
    """

    gain: NDArray[np.float32]
    bias: NDArray[np.float32]

    @property
    def is_identity(self) -> bool:
        """Tell whether the pixels go in as they are."""
        return bool(np.all(self.gain == 1) and np.all(self.bias == 0))

    def apply(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Give the normalised batch.

        Shape:
            batch (N, C, H, W), any numeric type; gives float32 of the same shape.
        """
        result = batch.astype(np.float32)
        if not self.is_identity:
            result *= self.gain
            result += self.bias
        return result


def make_normalisation(spec: InputSpec) -> Normalisation:
    """Fold the definition's three factors into two."""
    n = len(spec.bands)
    scale, mean, std = (np.broadcast_to(np.asarray(v, np.float64), n) for v in (spec.scale, spec.mean, spec.std))
    shape = (n, 1, 1)
    return Normalisation(
        (scale / std).astype(np.float32).reshape(shape), (-mean / std).astype(np.float32).reshape(shape)
    )


@dataclass(frozen=True)
class Preprocess:
    """How a tile becomes the network's image, and how its boxes come back.

    Where a tile hangs over the raster's right or lower end, what there is of the raster is resized alone and the rest
    filled up afterwards, as in the frameworks: its last row does not blend with what is not there.

    Args:
        width, height: Of the network's image, in pixels. A tile of another size is resized to it, each side by a
            factor of its own.
        limits: Width and height of the raster.
        pad_value: What stands where there is no raster.
    """

    width: int
    height: int
    limits: tuple[float, float] = (np.inf, np.inf)
    pad_value: float = 0.0

    def to_network(self, pixels: NDArray[Any], outer: Window) -> NDArray[Any]:
        """Give the network's view of a tile.

        Shape:
            pixels (C, H, W) of the window outer; gives (C, height, width), uint8 kept, else float32.
        """
        kept = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        if kept.shape[1:] == (self.height, self.width):
            return kept
        (columns, width), (rows, height) = self._content(outer)
        if (columns, rows) == (outer.width, outer.height):
            return _resize(kept, self.height, self.width)
        image = np.full((len(kept), self.height, self.width), self.pad_value).astype(kept.dtype)
        image[:, :height, :width] = _resize(kept[:, :rows, :columns], height, width)
        return image

    def to_raster(self, detections: Detections, outer: Window) -> Detections:
        """Take detections from network pixels to raster pixels."""
        (columns, width), (rows, height) = self._content(outer)
        x, y = columns / width, rows / height
        scaled = detections if x == y == 1 else detections.scale(x, y)
        return scaled.shift(outer.x, outer.y)

    def _content(self, outer: Window) -> tuple[tuple[int, int], tuple[int, int]]:
        """Give, for columns and rows, how many pixels of the raster a window has, and how many they become."""
        sides = (outer.x, outer.width, self.limits[0], self.width), (outer.y, outer.height, self.limits[1], self.height)
        across, down = (_side(*side) for side in sides)
        return across, down


def _side(start: int, length: int, limit: float, size: int) -> tuple[int, int]:
    inside = length if start < 0 or start + length <= limit else max(int(limit) - start, 1)
    return (inside, size) if inside == length else (inside, max(round(inside * size / length), 1))


def _resize(pixels: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Resize (C, H, W) to (C, height, width), bilinear with half-pixel centres."""
    rows, columns = _resize_weights(pixels.shape[1], height), _resize_weights(pixels.shape[2], width)
    low, high, share = rows
    lines = pixels[:, low] * (1 - share)[:, None] + pixels[:, high] * share[:, None]
    low, high, share = columns
    resized: NDArray[Any] = lines[:, :, low] * (1 - share) + lines[:, :, high] * share
    return np.rint(resized).astype(np.uint8) if pixels.dtype == np.uint8 else resized.astype(np.float32)


def _resize_weights(n: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Give, for each new pixel of an axis, the two old ones that it lies between, and the share of the second."""
    centre = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.floor(centre).astype(np.intp)
    return low, np.minimum(low + 1, n - 1), (centre - low).astype(np.float32)


def resize_cubic(batch: NDArray[Any], size: int) -> NDArray[Any]:
    """Resize (N, C, H, H) to (N, C, size, size) with cubic convolution; uint8 stays uint8, all else becomes float32.

    Source:
        Keys, "Cubic convolution interpolation for digital image processing", IEEE Transactions on Acoustics, Speech
        and Signal Processing 29 (1981), with a = -0.75, the parameter in common use.
    """
    weights = _cubic_weights(batch.shape[-1], size)
    resized: NDArray[Any] = weights @ batch.astype(np.float32) @ weights.T
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8) if batch.dtype == np.uint8 else resized


def _cubic_weights(n: int, size: int) -> NDArray[np.float32]:
    """Give (size, n): how much of each old pixel a new one takes, along one axis."""
    a = -0.75
    centre = (np.arange(size) + 0.5) * n / size - 0.5
    first = np.floor(centre).astype(np.intp) - 1
    weights = np.zeros((size, n), np.float32)
    for offset in range(4):
        distance = np.abs(centre - (first + offset))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
        np.add.at(weights, (np.arange(size), np.clip(first + offset, 0, n - 1)), weight.astype(np.float32))
    return weights
