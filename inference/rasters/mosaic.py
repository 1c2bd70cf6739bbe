"""Several rasters read as one: each at its place on a common grid, a later one on top where it has valid pixels."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ..errors import InferenceError, RasterError, RasterOpenError, RasterReadError
from ..job import RasterItem
from ..tiling import Window
from .placing import Lattice, Placed, lattice_of, place
from .source import GridRequest, PixelSource, RasterInfo

Opener = Callable[[int, GridRequest], PixelSource]

_MOST_OPEN = 32
"""Items that are open at a time; each has a handle or two for every thread that reads."""
_SAMPLED_ITEMS = 32
_SAMPLED_VALUES = 2**22
"""Values of a band in a sample of the whole mosaic."""
_MOST_EMPTY = 400
"""Times the area of its items that a mosaic may cover, where it is large."""
_LARGE = 2**34


class MosaicPixels:
    """Rasters as one: see `PixelSource`. Items are opened when they are needed, and not too many at a time.

    Where an item's pixels lie on the common grid they are read as they are; others are resampled to it. Of a pixel all
    bands come from one item: the last one in which it is valid. Between the items nothing is valid.

    Args:
        items: The rasters, the lowest first; the first one gives coordinate reference system and grid.
        request: The grid of pixels to read, in terms of the first item.
        open_item: Opens an item, known by its place in the list, on a grid. It is asked for the first one first.

    Raises:
        RasterOpenError: an item cannot be opened or brought to the grid, or does not go together with the first one.
        ModelIncompatibleError: an item lacks a band.
    """

    def __init__(self, items: Sequence[RasterItem], request: GridRequest, open_item: Opener) -> None:
        """Look at every item once."""
        self._items, self._open_item, self._resampling = tuple(items), open_item, request.resampling
        alone = GridRequest(resampling=request.resampling, is_look=True)
        looks = [self._look(number, alone if number else request) for number in range(len(self._items))]
        first = looks[0]
        _check_values(self._items, looks)
        lattice = lattice_of(first.info)
        placed = [_place(item, look.info, lattice) for item, look in zip(self._items, looks)]
        left, top = min(p.window.x for p in placed), min(p.window.y for p in placed)
        width, height = max(p.window.right for p in placed) - left, max(p.window.bottom for p in placed) - top
        _check_size(width, height, placed)
        self._placed = tuple(p.moved(-left, -top) for p in placed)
        self._tree = shapely.STRtree([_box(p.window) for p in self._placed])
        self._palettes = tuple(look.has_palette for look in looks)
        plain = next((look for look in looks if not look.has_palette), first)
        self._bands = plain.bands
        self._nodata = next((look.nodata for look in looks if look.nodata is not None), None)
        self._info = RasterInfo(
            width, height, first.info.n_bands, str(np.result_type(*{look.info.dtype for look in looks})),
            lattice.at(left, top), first.info.crs_wkt, max(look.info.block_height for look in looks),
        )  # fmt: skip
        self._pool = _Pool(self._opened, _MOST_OPEN)

    def _look(self, number: int, request: GridRequest) -> _Look:
        item = self._items[number]
        try:
            source = self._open_item(number, request)
        except InferenceError as error:
            if item.shown in error.message or item.source in error.message:
                raise
            raise type(error)(f"The raster '{item.shown}': {error.message}", hint=error.hint) from error
        try:
            return _Look(source)
        finally:
            source.close()

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return f"mosaic of {len(self._items)} rasters, the first one '{self._items[0].shown}'"

    @property
    def info(self) -> RasterInfo:
        """Describe the mosaic."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the first item's bands."""
        return self._bands

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels of all items are colours of colour tables."""
        return all(self._palettes)

    @property
    def nodata(self) -> float | None:
        """Give the first value that stands for no data in an item; the room between the items holds it, too."""
        return self._nodata

    @property
    def n_items(self) -> int:
        """Count the items."""
        return len(self._items)

    @property
    def n_resampled(self) -> int:
        """Count the items whose pixels do not lie on the common grid."""
        return sum(not p.is_exact for p in self._placed)

    def identity(self) -> list[Any] | None:
        """Give what tells the items' content from a changed one; None where nothing does for one of them."""
        found = []
        for number in range(len(self._items)):
            with self._pool.use(number) as source:
                found.append(source.identity())
            if found[-1] is None:
                return None
        return found

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band, from items spread over the list, as many of each.

        Raises:
            RasterReadError: none of them can be read.
        """
        numbers = [n for n, is_palette in enumerate(self._palettes) if self.has_palette or not is_palette]
        last = len(numbers) - 1
        n_chosen = min(len(numbers), _SAMPLED_ITEMS)
        chosen = sorted({numbers[round(last * step / max(n_chosen - 1, 1))] for step in range(n_chosen)})
        parts: list[list[NDArray[Any]]] = []
        error: RasterError | None = None
        for number in chosen:
            try:
                with self._pool.use(number) as source:
                    values = source.sample()
            except RasterError as failure:
                error = failure  # the run tells which tiles it spoils
                continue
            parts.append([_thinned(band, _SAMPLED_VALUES // n_chosen) for band in values])
        if not parts:
            raise RasterReadError(f"Of the {self.name} nothing can be read: {error}") from error
        return [np.concatenate(bands) for bands in zip(*parts)]

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window that lies inside, see `PixelSource.read`."""
        numbers = self._touched(window)
        if len(numbers) == 1 and self._placed[numbers[0]].window.intersect(window) == window:
            pixels, present = self._read_item(numbers[0], window)
            return pixels.astype(self._info.dtype, copy=False), present
        shape = (self._info.n_bands, window.height, window.width)
        pixels = np.full(shape, 0 if self._nodata is None else self._nodata).astype(self._info.dtype)
        present = np.zeros(shape, np.bool_)
        is_valid, is_covered = np.zeros(shape[1:], np.bool_), np.zeros(shape[1:], np.bool_)
        for number in reversed(numbers):  # from the top, until nothing lower shows
            common = self._placed[number].window.intersect(window)
            rows = slice(common.y - window.y, common.bottom - window.y)
            columns = slice(common.x - window.x, common.right - window.x)
            part, part_present = self._read_item(number, common)
            part_valid = part_present.any(axis=0)
            # What is valid nowhere keeps the value of the topmost item: it may stand for no data and mean white.
            takes = ~is_valid[rows, columns] & (part_valid | ~is_covered[rows, columns])
            np.copyto(pixels[:, rows, columns], part, where=takes, casting="unsafe")
            np.copyto(present[:, rows, columns], part_present, where=takes)
            is_valid[rows, columns] |= part_valid
            is_covered[rows, columns] = True
            if is_valid.all():
                break
        return pixels, present

    def _touched(self, window: Window) -> list[int]:
        """Give the items that have pixels in a window, the lowest first."""
        found = self._tree.query(_box(window))
        common = {int(n): self._placed[n].window.intersect(window) for n in found}
        return sorted(n for n, part in common.items() if part.width and part.height)

    def _read_item(self, number: int, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        own = self._placed[number].window
        inside = Window(window.x - own.x, window.y - own.y, window.width, window.height)
        with self._pool.use(number) as source:
            return source.read(inside)

    def _opened(self, number: int) -> PixelSource:
        place = self._placed[number]
        try:
            return self._open_item(number, GridRequest(resampling=self._resampling, target=place.target))
        except RasterOpenError as error:  # it was there when the run began
            w = place.window
            raise RasterReadError(error.message, hint=error.hint, window=[w.x, w.y, w.width, w.height]) from error

    def close(self) -> None:
        """Close all items; no thread may be reading."""
        self._pool.close()


class _Look:
    """What one look at an item tells."""

    def __init__(self, source: PixelSource) -> None:
        self.info, self.bands, self.has_palette, self.nodata = (
            source.info, source.bands, source.has_palette, source.nodata,
        )  # fmt: skip


def _place(item: RasterItem, info: RasterInfo, lattice: Lattice) -> Placed:
    try:
        return place(info, lattice)
    except RasterOpenError as error:
        raise RasterOpenError(f"The raster '{item.shown}' {error.message}", hint=error.hint) from error


def _check_values(items: Sequence[RasterItem], looks: Sequence[_Look]) -> None:
    """Refuse bytes together with other values: the same number does not mean the same in both.

    Raises:
        RasterOpenError: they are mixed.
    """
    first = looks[0].info.dtype
    for item, look in zip(items, looks):
        if (look.info.dtype == "uint8") != (first == "uint8"):
            raise RasterOpenError(
                f"The raster '{item.shown}' holds values of the type {look.info.dtype}, and '{items[0].shown}' of the "
                f"type {first}: in a mosaic they would not mean the same.",
                hint="Bring them to one type first, or process the items separately.",
            )


def _check_size(width: int, height: int, placed: Sequence[Placed]) -> None:
    n_pixels = sum(p.window.width * p.window.height for p in placed)
    if max(width, height) >= 2**31 or width * height > max(_LARGE, _MOST_EMPTY * n_pixels):
        raise RasterOpenError(
            f"As one mosaic the {len(placed)} rasters would have {width} x {height} pixels, nearly all of them empty: "
            "they lie far from each other.",
            hint="Process the items separately.",
        )


def _box(window: Window) -> shapely.Polygon:
    return shapely.box(window.x, window.y, window.right, window.bottom)


def _thinned(values: NDArray[Any], most: int) -> NDArray[Any]:
    return values[:: -(-len(values) // most) or 1].copy()


class _Entry:
    """An item in the pool."""

    def __init__(self) -> None:
        self.source: PixelSource | None = None
        self.n_users = 0
        self.lock = threading.Lock()

    def close(self) -> None:
        if self.source is not None:
            self.source.close()


class _Pool:
    """The items that are open: the ones that were used last, and those in use."""

    def __init__(self, open_item: Callable[[int], PixelSource], most: int) -> None:
        self._open_item, self._most = open_item, most
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def use(self, number: int) -> Iterator[PixelSource]:
        """Lend an item; it stays open as long."""
        with self._lock:
            entry = self._entries.setdefault(number, _Entry())
            self._entries.move_to_end(number)
            entry.n_users += 1
            surplus = self._surplus()
        for old in surplus:
            old.close()
        try:
            with entry.lock:
                if entry.source is None:
                    entry.source = self._open_item(number)
            yield entry.source
        finally:
            with self._lock:
                entry.n_users -= 1

    def _surplus(self) -> list[_Entry]:
        idle = [number for number, entry in self._entries.items() if entry.n_users == 0]
        return [self._entries.pop(number) for number in idle[: max(0, len(self._entries) - self._most)]]

    def close(self) -> None:
        with self._lock:
            for entry in self._entries.values():
                entry.close()
            self._entries.clear()
