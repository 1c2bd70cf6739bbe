"""Stretching of pixel values: where its ends lie in a raster, and the values that come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.stretch import Stretch, per_band


@dataclass(frozen=True)
class BandStretch:
    """A straight line a band: from `lows[i]` and `highs[i]` to the ends of `to`, cut off there.

    Units/space: lows and highs in raster values, to in the model's.
    """

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    to: tuple[float, float]
    is_to_bytes: bool

    @property
    def dtype(self) -> str:
        """Give the type of what comes out, as numpy calls it."""
        return "uint8" if self.is_to_bytes else "float32"

    def apply(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Give the stretched values.

        Shape:
            pixels (C, H, W), any numeric type; gives the same shape.
        """
        result = np.empty(pixels.shape, self.dtype)
        for index, (low, high) in enumerate(zip(self.lows, self.highs)):  # one by one: in between they take 8 bytes
            share = np.clip((pixels[index] - np.float64(low)) / (high - low), 0, 1)
            values = self.to[0] + share * (self.to[1] - self.to[0])
            result[index] = np.rint(values) if self.is_to_bytes else values
        return result


def measured(stretch: Stretch, samples: Sequence[NDArray[Any]]) -> BandStretch:
    """Find where the ends of a stretch lie.

    Args:
        stretch: What the definition or the user wants.
        samples: Valid values of each band, spread over the whole raster.
    """
    if stretch.source == "range":
        n = len(samples)
        ends = list(zip(per_band(stretch.minimum, n), per_band(stretch.maximum, n)))
    else:
        ends = [_ends(stretch, values) for values in samples]
    lows, highs = zip(*ends)
    return BandStretch(tuple(lows), tuple(highs), stretch.to, stretch.is_to_bytes)


def _ends(stretch: Stretch, values: NDArray[Any]) -> tuple[float, float]:
    if len(values) == 0:
        return 0.0, 1.0  # nothing will be seen anyway
    if stretch.source == "percentiles":
        low, high = (float(value) for value in np.percentile(values, [stretch.low, stretch.high]))
    else:
        mean = float(values.mean(dtype=np.float64))
        reach = stretch.deviations * float(values.std(dtype=np.float64))
        low, high = mean - reach, mean + reach
    if not low < high:
        low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low, low + 1.0)
