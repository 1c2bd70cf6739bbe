"""The grid of tiles over a raster.

    raster edge
    ┌──────────────────────────── outer: what the network sees, tile_size x tile_size
    │        padding
    │      ┌───────────────┐
    │      │     inner     │      what the tile may claim: the inner windows partition the searched area
    │      │               │
    │      └───────────────┘
    │

Three rules make the union over tiles equal to one pass over the whole raster (docs/architecture.md, "Seams"):
origins of outer windows are multiples of the model's stride; outer windows stay inside the raster (the last one of a
row moves back instead of hanging over, except for the part of a stride that one pass would have to fill, too); and
padding is at least the radius of the model's receptive field.

All windows are in raster pixels, half-open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detections import FloatArray

VIEW_EDGE = 2.0
"""Pixels from the edge of its view within which a network draws the edge of an object that goes on.

Source: ArcGIS's exclude_pad_detections.
"""


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: columns x .. x + width, rows y .. y + height, half-open."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """Give the first column behind the window."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """Give the first row below the window."""
        return self.y + self.height

    def intersect(self, other: Window) -> Window:
        """Give the common part; its width or height is 0 where there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Window(x, y, max(0, min(self.right, other.right) - x), max(0, min(self.bottom, other.bottom) - y))


@dataclass(frozen=True)
class Tile:
    """One unit of work: `number` counts row by row from the upper left."""

    number: int
    inner: Window
    outer: Window


@dataclass(frozen=True)
class Axis:
    """The tiles of one dimension.

    Args:
        limit: Length of the raster along this axis.
        start: First pixel of the searched area.
        stop: First pixel behind the searched area.
        size: Length of a tile.
        padding: Pixels shared with the neighbour, a multiple of the stride.
        stride: Origins are multiples of it.
        hangs_over: Each tile has all of its padding, also beyond the ends of the raster.
    """

    limit: int
    start: int
    stop: int
    size: int
    padding: int
    stride: int
    hangs_over: bool = False

    @property
    def step(self) -> int:
        """Give the distance between neighbouring tiles."""
        return self.size - 2 * self.padding

    @property
    def _first_origin(self) -> int:
        if self.hangs_over:
            return self.start - self.padding
        aligned = (self.start - self.padding) // self.stride * self.stride
        return min(max(0, aligned), self._last_origin)

    @property
    def _last_origin(self) -> int:
        return max(0, align_up(self.limit, self.stride) - self.size)

    @property
    def _first_end(self) -> int:
        return self._first_origin + self.size - self.padding

    def __len__(self) -> int:
        """Give the number of tiles."""
        if self.hangs_over:
            return max(1, -((self.start - self.stop) // self.step))
        if self.size >= self.limit:
            return 1  # it sees all, however much of it would be padding
        reach = self.stop if self.stop <= self.limit - self.padding else self.limit - self.padding
        return 1 + max(0, -((self._first_end - reach) // self.step))

    def origin(self, index: int) -> int:
        """Give the first pixel that tile `index` sees."""
        free = self._first_origin + index * self.step
        return free if self.hangs_over else min(free, self._last_origin)

    def inner(self, index: int) -> tuple[int, int]:
        """Give the half-open interval that tile `index` may claim."""
        first = self.start if index == 0 else self._first_end + (index - 1) * self.step
        last = self.stop if index == len(self) - 1 else self._first_end + index * self.step
        return first, last

    def inner_edges(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give what `inner` does for many tiles, (N, 2)."""
        first = np.where(indices == 0, self.start, self._first_end + (indices - 1) * self.step)
        last = np.where(indices == len(self) - 1, self.stop, self._first_end + indices * self.step)
        return np.stack([first, last], axis=1)


def align_up(value: int, stride: int) -> int:
    """Give the smallest multiple of `stride` that is not below `value`."""
    return -(-value // stride) * stride


@dataclass(frozen=True)
class TileGrid:
    """All tiles of a run: an indexable value, made lazily, whatever the raster's size.

    Args:
        width, height: Size of the raster.
        area: The part of it that is searched.
        tile_size: Width of the outer windows, and their height where no other is given.
        padding: Pixels that a tile shares with each neighbour.
        stride: The model's stride; tile_size and padding are multiples of it.
        tile_height: Height of the outer windows; 0: as their width.
        is_cropped: Along an axis on which the raster is shorter than a tile, outer windows end with the raster, rounded
            up to the stride, as one pass over the whole raster would.
        hangs_over: Each tile has all of its padding, also beyond the raster's edges, where there are no pixels: what
            a raster function of ArcGIS is given. Nothing is exact then.
    """

    width: int
    height: int
    area: Window
    tile_size: int
    padding: int
    stride: int
    tile_height: int = 0
    is_cropped: bool = False
    hangs_over: bool = False

    @property
    def columns(self) -> Axis:
        """Give the grid's horizontal axis."""
        return self._axis(self.width, self.area.x, self.area.right, self.tile_size)

    @property
    def rows(self) -> Axis:
        """Give the grid's vertical axis."""
        return self._axis(self.height, self.area.y, self.area.bottom, self.tile_height or self.tile_size)

    def _axis(self, limit: int, start: int, stop: int, side: int) -> Axis:
        side = min(side, align_up(limit, self.stride)) if self.is_cropped else side
        return Axis(limit, start, stop, side, self.padding, self.stride, self.hangs_over)

    def __len__(self) -> int:
        """Give the number of tiles."""
        return len(self.columns) * len(self.rows)

    def __getitem__(self, number: int) -> Tile:
        """Give tile `number`, counted row by row."""
        row, column = divmod(number, len(self.columns))
        if not 0 <= row < len(self.rows):
            raise IndexError(number)
        (x0, x1), (y0, y1) = self.columns.inner(column), self.rows.inner(row)
        outer = Window(self.columns.origin(column), self.rows.origin(row), self.columns.size, self.rows.size)
        return Tile(number, Window(x0, y0, x1 - x0, y1 - y0), outer)

    def __iter__(self) -> Iterator[Tile]:
        """Give all tiles in order."""
        return (self[number] for number in range(len(self)))

    def inner_boxes(self, numbers: NDArray[np.int64]) -> FloatArray:
        """Give the inner windows of many tiles as boxes (N, 4), raster pixels."""
        rows, columns = np.divmod(numbers, len(self.columns))
        across, down = self.columns.inner_edges(columns), self.rows.inner_edges(rows)
        return np.stack([across[:, 0], down[:, 0], across[:, 1], down[:, 1]], axis=1).astype(np.float64)

    def owns(self, tile: Tile, anchors: FloatArray, tolerance: float = 0.0) -> NDArray[np.bool_]:
        """Tell which detections a tile may claim.

        Shape:
            anchors (N, 2), raster pixels; gives (N,).

        Args:
            tile: The tile that found them.
            anchors: Where the detections are.
            tolerance: Pixels by which the inner window is widened towards its neighbours.

        A border tile also owns what lies beyond the raster's edge: a box may lean out of the image.
        """
        inner = tile.inner
        x0 = -np.inf if inner.x == 0 else inner.x - (tolerance if inner.x > self.area.x else 0)
        y0 = -np.inf if inner.y == 0 else inner.y - (tolerance if inner.y > self.area.y else 0)
        x1 = np.inf if inner.right == self.width else inner.right + (tolerance if inner.right < self.area.right else 0)
        y1 = (
            np.inf
            if inner.bottom == self.height
            else inner.bottom + (tolerance if inner.bottom < self.area.bottom else 0)
        )
        x, y = anchors[:, 0], anchors[:, 1]
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)

    def reaches_end_of_view(self, tile: Tile, boxes: FloatArray) -> NDArray[np.bool_]:
        """Tell which boxes reach an edge of what the tile sees, to within 2 pixels, where the raster goes on.

        Shape:
            boxes (N, 4), raster pixels; gives (N,).
        """
        x0, y0, x1, y1 = boxes.T
        outer = tile.outer
        left = (x0 <= outer.x + VIEW_EDGE) & (outer.x > 0)
        top = (y0 <= outer.y + VIEW_EDGE) & (outer.y > 0)
        right = (x1 >= outer.right - VIEW_EDGE) & (outer.right < self.width)
        bottom = (y1 >= outer.bottom - VIEW_EDGE) & (outer.bottom < self.height)
        reaches: NDArray[np.bool_] = left | top | right | bottom
        return reaches

    def seam_distance(self, tile: Tile, anchors: FloatArray) -> FloatArray:
        """Give the distance of each anchor from the nearest edge that the tile shares with another one.

        Shape:
            anchors (N, 2), raster pixels; gives (N,), infinite where the tile has no neighbour.
        """
        distance = np.full(len(anchors), np.inf)
        inner, area = tile.inner, self.area
        for edge, bound, axis in (
            (inner.x, area.x, 0), (inner.right, area.right, 0), (inner.y, area.y, 1), (inner.bottom, area.bottom, 1),
        ):  # fmt: skip
            if edge != bound:
                distance = np.minimum(distance, np.abs(anchors[:, axis] - edge))
        return distance
