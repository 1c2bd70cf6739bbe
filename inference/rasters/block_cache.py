"""Pixels that are fetched in blocks: aligned ones, a few at once, each once as long as it is remembered.

Tiles overlap, and several threads read: what two of them need is asked for once. A block is the same whatever window
it was asked for, so results do not depend on the size of tiles.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tiling import Window

Pixels = tuple[NDArray[Any], NDArray[np.bool_]]
"""(C, H, W) pixels; (C, H, W), whether each is one."""

_REMEMBERED = 256 * 2**20


class BlockCache:
    """Reads windows of a raster by its blocks; any thread may read.

    Args:
        width: Columns of the raster.
        height: Rows.
        side: Rows and columns of a block; at the raster's right and lower edge they are smaller.
        fetch: Gets one block; called from several threads.
        at_once: Most blocks that are fetched at the same time.
        remembered: Bytes of blocks that are kept.
    """

    def __init__(
        self,
        width: int,
        height: int,
        side: int,
        fetch: Callable[[Window], Pixels],
        *,
        at_once: int = 4,
        remembered: int = _REMEMBERED,
    ) -> None:
        """Start the threads that fetch."""
        self._whole, self._side, self._fetch, self._limit = Window(0, 0, width, height), side, fetch, remembered
        self._blocks: OrderedDict[tuple[int, int], Future[Pixels]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="kestrel-blocks")

    def read(self, window: Window) -> Pixels:
        """Read a window that lies inside; raises what `fetch` raised."""
        # All are asked for before the first is waited for.
        blocks = [(place, self._wanted(place)) for place in self._places(window)]
        parts = [(place, future.result()) for place, future in blocks]
        first, _ = parts[0][1]
        pixels = np.zeros((first.shape[0], window.height, window.width), first.dtype)
        present = np.zeros(pixels.shape, np.bool_)
        for place, (part, valid) in parts:
            block = self._block(place)
            common = block.intersect(window)
            source = _slices(common, block)
            target = _slices(common, window)
            pixels[target], present[target] = part[source], valid[source]
        return pixels, present

    def close(self) -> None:
        """Forget everything; what is under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._blocks.clear()

    def _places(self, window: Window) -> Iterator[tuple[int, int]]:
        for row in range(window.y // self._side, (window.bottom - 1) // self._side + 1):
            for column in range(window.x // self._side, (window.right - 1) // self._side + 1):
                yield row, column

    def _block(self, place: tuple[int, int]) -> Window:
        side = self._side
        return Window(place[1] * side, place[0] * side, side, side).intersect(self._whole)

    def _wanted(self, place: tuple[int, int]) -> Future[Pixels]:
        with self._lock:
            known = self._blocks.get(place)
            future = known or self._threads.submit(self._fetch, self._block(place))
            self._blocks[place] = future
            self._blocks.move_to_end(place)
        if known is None:
            future.add_done_callback(lambda done: self._came(place, done))  # it may run at once, and takes the lock
        return future

    def _came(self, place: tuple[int, int], future: Future[Pixels]) -> None:
        """Count a block that has come, and forget the oldest; one that failed is asked for anew the next time."""
        with self._lock:
            if future.cancelled() or future.exception() is not None:
                if self._blocks.get(place) is future:
                    del self._blocks[place]
                return
            self._bytes += _size(future)
            if self._bytes <= self._limit:
                return
            for old in [place for place, block in self._blocks.items() if block.done()]:
                self._bytes -= _size(self._blocks.pop(old))
                if self._bytes <= self._limit:
                    return


def _size(future: Future[Pixels]) -> int:
    pixels, present = future.result()
    return int(pixels.nbytes + present.nbytes)


def _slices(window: Window, frame: Window) -> tuple[slice, slice, slice]:
    """Give where a window lies in an array that holds a larger one."""
    rows = slice(window.y - frame.y, window.bottom - frame.y)
    columns = slice(window.x - frame.x, window.right - frame.x)
    return slice(None), rows, columns
