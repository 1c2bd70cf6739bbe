"""A sample of a raster's values: spread over all of it, the same each time, whatever the raster's size.

A small raster is read whole, one with overviews from these. Of others some windows are read where they lie on a grid:
a look at every pixel of a mosaic could take an hour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from .virtual_parts import is_part_missing

_WHOLE = 2048 * 2048
"""Pixels of a raster, or of its overview, that are read at once."""
_SIDE = 1024
"""Longest side of what is read of an overview."""
_WINDOWS = 8
_WINDOW = 128
"""Windows along each side of the raster, and their side in pixels."""


def sample_values(
    dataset: Any, bands: Sequence[int], *, ignores_mask: bool, passes_over_damage: bool = False
) -> list[NDArray[Any]]:
    """Give valid and finite values of each band.

    Args:
        dataset: An open raster of rasterio's.
        bands: 1-based numbers.
        ignores_mask: Every pixel counts as valid.
        passes_over_damage: Take what can be read; the run tells which tiles the rest spoils.

    Raises:
        RasterioError: a part cannot be read; or, where damage is passed over, none can.
    """
    parts: list[list[NDArray[Any]]] = [[] for _ in bands]
    error: RasterioError | None = None
    for window, shape in _places(dataset):
        try:
            found = _values(dataset, bands, window, shape, ignores_mask=ignores_mask)
        except RasterioError as failure:
            if is_part_missing(dataset.name, failure) or not passes_over_damage:
                raise
            error = failure
            continue
        for part, values in zip(parts, found):
            part.append(values)
    if error is not None and not parts[0]:
        raise error
    return [np.concatenate(part) for part in parts]


def _values(
    dataset: Any, bands: Sequence[int], window: Window, shape: tuple[int, int], *, ignores_mask: bool
) -> list[NDArray[Any]]:
    options = {"window": window, "out_shape": (len(bands), *shape)}
    pixels = dataset.read(list(bands), **options)
    masks = None if ignores_mask else dataset.read_masks(list(bands), **options)
    found = []
    for index, band in enumerate(pixels):
        present = np.isfinite(band)
        found.append(band[present if masks is None else present & (masks[index] > 0)])
    return found


def _places(dataset: Any) -> Iterator[tuple[Window, tuple[int, int]]]:
    """Give the windows to read, and the rows and columns to read them in."""
    width, height = dataset.width, dataset.height
    smallest = max([1, *dataset.overviews(1)])
    if width * height <= _WHOLE * smallest**2:
        factor = 1 if width * height <= _WHOLE else max(width, height) / _SIDE
        shape = (max(1, round(height / factor)), max(1, round(width / factor)))
        yield Window(0, 0, width, height), shape
        return
    block_height, block_width = dataset.block_shapes[0]
    for y in _starts(height, block_height):
        for x in _starts(width, block_width):
            rows, columns = min(_WINDOW, height - y), min(_WINDOW, width - x)
            yield Window(x, y, columns, rows), (rows, columns)


def _starts(size: int, block: int) -> list[int]:
    """Give where windows begin along a side: spread evenly, and inside of one block where they fit."""
    last = max(size - _WINDOW, 0)
    places = [round(last * step / (_WINDOWS - 1)) for step in range(_WINDOWS)]
    if block >= _WINDOW:
        places = [min(place, place // block * block + block - _WINDOW) for place in places]
    return sorted(set(places))
