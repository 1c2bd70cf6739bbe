"""Pictures: rasters whose pixels only QGIS can read or draw; it hands them over block by block.

QGIS says of a tile that did not come no more than that there is nothing to see. Three rules keep holes from being
silent:

    outside      A pixel outside the layer's extent is no data.
    transparent  A pixel that stays empty is no data if no request failed while QGIS fetched it: there is no picture
                 of that place. Where nothing was heard of the server either, that has to happen twice in a row. How
                 much of the searched area it was is told at the end.
    missing      A pixel that stays empty while requests fail is asked for again, with pauses. Pixels that still lack
                 then spoil their block: its tiles are put aside, counted and told with their places.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from ..errors import JobError, ModelIncompatibleError, RasterFetchError, RasterOpenError, RasterReadError
from ..events import Canceled, Message
from ..job import RasterItem
from ..models.fit_rules import find_band
from ..pictures import Picture
from ..tiling import Window
from .access import RasterAccess
from .block_cache import BlockCache, Pixels
from .grid import is_same_grid, wanted_grid
from .source import GridRequest, RasterInfo, TargetGrid

AT_ONCE = 4
"""Requests that wait for QGIS at the same time; it answers them one by one, so that its own limits hold."""
TRIES = 6
"""Failures of a block meanwhile the server answered others well."""
PATIENCE = 120.0
"""Seconds without any good answer after which a server counts as gone."""
_FIRST_PAUSE, _LONGEST_PAUSE, _DOUBLINGS = 0.5, 8.0, 10
_LOOK = 0.1
_SAMPLE_SIDE = 512
_TOLD_AS_WARNING = 10.0
"""Per cent of the searched area."""


class PicturePixels:
    """A raster that QGIS hands over.

    Args:
        item: `source` is QGIS's name for it; `options` holds
            "transform" (six numbers, as affine orders them), "width", "height": the grid that it is read on;
            "extent": where the layer has anything, xmin, ymin, xmax, ymax;
            "searched": a rectangle around what is searched, likewise;
            "bands": names; "dtype"; "nodata": a number or None;
            "block": side of the blocks to ask for, in pixels;
            "any_grid": whether QGIS reads it as well on another grid;
            "is_remote": whether a server is behind it.
        bands: Which of its bands, in which order: 0-based numbers, or names.
        grid: The grid of pixels to read.
        access: The way to QGIS.

    Raises:
        JobError: an option is missing.
        RasterOpenError: it cannot be read on that grid.
        ModelIncompatibleError: it lacks a band.
    """

    def __init__(self, item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess) -> None:
        """Look at the options; nothing is asked for yet."""
        self._item, self._access = item, access
        options = _Options(item)
        self._extent, self._searched = options.numbers("extent", 4), options.numbers("searched", 4)
        self._is_remote = bool(options.get("is_remote"))
        self._bands = _resolve_bands(item.shown, [str(name) for name in options.get("bands")], bands)
        nodata = item.options.get("nodata")
        self._nodata = None if nodata is None else float(nodata)
        self._grid = _grid(item, options, grid)
        side = int(options.get("block"))
        self._info = RasterInfo(
            self._grid.width,
            self._grid.height,
            len(bands),
            str(np.dtype(options.get("dtype"))),
            self._grid.transform,
            self._grid.crs_wkt,
            side,
        )
        self._server = _ServerState()
        self._n_read, self._n_empty = 0, 0
        self._lock = threading.Lock()
        self._blocks = BlockCache(self._grid.width, self._grid.height, side, self._fetch, at_once=AT_ONCE)

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return self._item.shown

    @property
    def info(self) -> RasterInfo:
        """Describe it."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read."""
        return tuple(band + 1 for band in self._bands)

    @property
    def has_palette(self) -> bool:
        """Tell that QGIS has looked up the colours already."""
        return False

    @property
    def nodata(self) -> float | None:
        """Give the value that stands for no data."""
        return self._nodata

    def read(self, window: Window) -> Pixels:
        """Read a window that lies inside, see `PixelSource.read`."""
        return self._blocks.read(window)

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band, from a coarse picture of the whole."""
        whole = Window(0, 0, self._grid.width, self._grid.height)
        factor = max(1.0, max(whole.width, whole.height) / _SAMPLE_SIDE)
        size = (max(1, round(whole.width / factor)), max(1, round(whole.height / factor)))
        pixels, present = self._complete(whole, size)
        return [band[valid] for band, valid in zip(pixels, present)]

    def identity(self) -> list[Any] | None:
        """Tell that nothing tells a picture from a changed one."""
        return None

    def close(self) -> None:
        """Say how much of the picture was not there, and let go of what was read."""
        self._blocks.close()
        with self._lock:
            n_read, n_empty = self._n_read, self._n_empty
            self._n_read = 0
        if n_read and n_empty:
            share = max(100 * n_empty / n_read, 0.1)
            text = f"{share:.2g} % of the searched area had no picture in '{self.name}': nothing is found there."
            self._access.report(Message("warning" if share > _TOLD_AS_WARNING else "info", "coverage", text))

    def _fetch(self, window: Window) -> Pixels:
        """Get one block; called from several threads."""
        pixels, present = self._complete(window, (window.width, window.height))
        searched = self._within(self._searched, window, (window.width, window.height))
        with self._lock:
            self._n_read += int(searched.sum())
            self._n_empty += int((searched & ~present.any(axis=0)).sum())
        return pixels, present

    def _complete(self, window: Window, size: tuple[int, int]) -> Pixels:
        """Ask for pixels until they are complete, or what lacks is known to be no data.

        Raises:
            RasterFetchError: pixels are missing after all tries.
            Canceled: the run is to end.
        """
        width, height = size
        inside = self._within(self._extent, window, size)
        pixels = np.zeros((len(self._bands), height, width), self._info.dtype)
        cover = np.zeros((height, width), np.bool_)
        if not inside.any():
            return pixels, np.zeros(pixels.shape, np.bool_)
        tries = _Tries(self._server)
        n_calm = 0
        while True:
            picture, failure = self._ask(window, size, tries.n_failed + n_calm)
            if picture is not None:
                self._fill(pixels, cover, picture)
                if (cover | ~inside).all():
                    break
                if picture.failures == 0:
                    n_calm += 1
                    if n_calm == 2 or picture.answered or not self._is_remote:
                        break
                    continue
                failure = picture.reason
            n_calm = 0
            if not tries.goes_on():
                raise self._fetch_error(window, failure)
            self._pause(tries.pause)
        present = np.broadcast_to(cover, pixels.shape) & self._is_data(pixels)
        return pixels, present

    def _ask(self, window: Window, size: tuple[int, int], again: int) -> tuple[Picture | None, str]:
        """Ask once; give the picture, or why there is none."""
        left, top = self._grid.transform * (window.x, window.y)
        right, bottom = self._grid.transform * (window.right, window.bottom)
        try:
            picture = self._access.ask(self._item.source, (left, bottom, right, top), size, again)
        except RasterReadError as error:
            return None, error.message
        is_shape = picture.shape[1:] == (size[1], size[0]) and picture.shape[0] > max(self._bands)
        if not is_shape or picture.dtype != self._info.dtype:
            raise RasterReadError(f"QGIS gave other pixels of '{self.name}' than it was asked for.")
        if picture.answered and not picture.failures:
            self._server.answered()
        return picture, ""

    def _fill(self, pixels: NDArray[Any], cover: NDArray[np.bool_], picture: Picture) -> None:
        """Put in what has come and was not there yet."""
        came = np.frombuffer(picture.cover, np.uint8).reshape(cover.shape) != 0
        values = np.frombuffer(picture.pixels, picture.dtype).reshape(picture.shape)[list(self._bands)]
        new = came & ~cover
        pixels[:, new] = values[:, new]
        cover |= came

    def _within(self, extent: tuple[float, ...], window: Window, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Tell which pixels lie wholly inside of an extent."""
        xmin, ymin, xmax, ymax = extent
        (left, top), (right, bottom) = ~self._grid.transform * (xmin, ymax), ~self._grid.transform * (xmax, ymin)
        scale_x, scale_y = window.width / size[0], window.height / size[1]
        columns = window.x + np.arange(size[0]) * scale_x
        rows = window.y + np.arange(size[1]) * scale_y
        is_column = (columns >= left - 1e-3) & (columns + scale_x <= right + 1e-3)
        is_row = (rows >= top - 1e-3) & (rows + scale_y <= bottom + 1e-3)
        return np.asarray(is_row[:, None] & is_column[None, :], np.bool_)

    def _is_data(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        if self._nodata is None:
            return np.ones(pixels.shape, np.bool_)
        return ~np.isnan(pixels) if np.isnan(self._nodata) else np.asarray(pixels != self._nodata, np.bool_)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self._access.is_cancelled():
                raise Canceled
            time.sleep(min(_LOOK, left))

    def _fetch_error(self, window: Window, reason: str) -> RasterFetchError:
        return RasterFetchError(
            f"The raster '{self.name}' cannot be read at columns {window.x} to {window.right}, "
            f"rows {window.y} to {window.bottom}: {reason or 'pixels did not come'}.",
            window=[window.x, window.y, window.width, window.height],
        )


class _ServerState:
    """When the server behind a picture last answered well; shared by all threads that ask."""

    def __init__(self) -> None:
        """Begin with a server that counts as well."""
        self._lock = threading.Lock()
        self._last_good = time.monotonic()

    def answered(self) -> None:
        """Note a good answer."""
        with self._lock:
            self._last_good = time.monotonic()

    @property
    def last_good(self) -> float:
        """Give the time of the last good answer."""
        return self._last_good


class _Tries:
    """The tries of one block: a few while the server serves others, as long as patience lasts while it is gone."""

    def __init__(self, server: _ServerState) -> None:
        """Start before the first try."""
        self._server = server
        self._last = time.monotonic()
        self._n_alone = 0
        self.n_failed = 0

    def goes_on(self) -> bool:
        """Count a try that failed, and tell whether another one is worth it."""
        now = time.monotonic()
        is_alone = self._server.last_good > self._last
        self._last = now
        self.n_failed += 1
        self._n_alone += is_alone
        return self._n_alone < TRIES if is_alone else now - self._server.last_good < PATIENCE

    @property
    def pause(self) -> float:
        """Give the seconds to wait before the next try."""
        return min(_FIRST_PAUSE * 2.0 ** min(self.n_failed - 1, _DOUBLINGS), _LONGEST_PAUSE)


class _Options:
    """The options of a picture, checked where they are taken."""

    def __init__(self, item: RasterItem) -> None:
        self._item = item
        self._values: Mapping[str, Any] = item.options

    def get(self, key: str) -> Any:
        if self._values.get(key) is None:
            raise JobError(f"The raster '{self._item.shown}' lacks the option '{key}'.")
        return self._values[key]

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        values = self.get(key)
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise JobError(f"The option '{key}' of the raster '{self._item.shown}' is not {count} numbers.")
        return numbers


def _grid(item: RasterItem, options: _Options, request: GridRequest) -> TargetGrid:
    transform = Affine(*options.numbers("transform", 6))
    width, height = int(options.get("width")), int(options.get("height"))
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0 or width < 1 or height < 1:
        raise JobError(f"The raster '{item.shown}' has a grid that QGIS cannot read.")
    if not item.crs_wkt:
        raise RasterOpenError(f"The layer '{item.shown}' has no coordinate reference system.")
    grid = wanted_grid(transform, width, height, item.crs_wkt, request)
    if is_same_grid(grid, transform, width, height):
        return TargetGrid(width, height, transform, item.crs_wkt)
    is_straight = not grid.transform.b and not grid.transform.d
    if not item.options.get("any_grid") or not is_straight or grid.crs_wkt != item.crs_wkt:
        raise RasterOpenError(
            f"The layer '{item.shown}' can only be read with its own pixels.",
            hint="Leave the cell size, the snap raster and further rasters out, or save the layer as a GeoTIFF first.",
        )
    return grid


def _resolve_bands(name: str, names: list[str], bands: tuple[int | str, ...]) -> list[int]:
    places = []
    for band in bands:
        place = find_band(band, names) if isinstance(band, str) else band
        if place is None or place >= len(names):
            wanted = f"a band named '{band}'" if isinstance(band, str) else f"band {band + 1}"
            raise ModelIncompatibleError(
                f"The model needs {wanted}, and the layer '{name}' has {', '.join(names)}.",
                hint="Choose a raster with the bands that the model was trained on.",
            )
        places.append(place)
    return places
