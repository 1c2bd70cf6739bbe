"""The pipeline: tiles are read ahead, stacked into batches, run, and handed out in the order of the tiles.

    reader threads ──> batches in tile order ──> calling threads ──> outcomes in tile order

Everything between is bounded, so memory does not grow with the raster. Results do not depend on the number of threads
or on the batch size: a tile's outcome is a function of its pixels.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .detections import Detections
from .detectors.protocol import Detector
from .errors import DeviceMemoryError, InferenceError, RasterReadError, TileError
from .events import Canceled
from .journal import TileState
from .preprocess import Preprocess
from .rasters.model_raster import ModelRaster
from .tiling import Tile

T = TypeVar("T")
_POLL_SECONDS = 0.1
_QUICK_SECONDS = 2.0


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a tile: its detections in raster pixels where it was run, the reason where it could not be."""

    tile: Tile
    state: TileState
    detections: Detections | None = None
    error: InferenceError | None = None


@dataclass(frozen=True, eq=False)
class _Loaded:
    tile: Tile
    pixels: NDArray[Any] | None
    state: TileState
    error: RasterReadError | None = None


@dataclass(frozen=True)
class Trial:
    """What a trial tile took: seconds a tile, of whatever is slower, reading or running."""

    seconds: float


class BatchSize:
    """The number of tiles that run together; shrinks, for all threads, when memory does not hold them."""

    def __init__(self, value: int) -> None:
        """Start at `value`."""
        self._value = value
        self._lock = threading.Lock()

    @property
    def value(self) -> int:
        """Give the size that works, as far as is known."""
        return self._value

    def halve(self, failed: int) -> None:
        """Learn that `failed` tiles were too many."""
        with self._lock:
            self._value = max(1, min(self._value, failed // 2))


@dataclass(frozen=True)
class Pipeline:
    """The parts that tiles run through."""

    source: ModelRaster
    preprocess: Preprocess
    detector: Detector
    batch_size: BatchSize
    n_readers: int
    n_callers: int

    def run(
        self, tiles: Iterable[Tile], is_wanted: Callable[[Tile], bool], is_cancelled: Callable[[], bool]
    ) -> Iterator[list[Outcome]]:
        """Run tiles and give their outcomes, batch by batch, in the order of the tiles.

        Args:
            tiles: What to run.
            is_wanted: Tells whether a tile lies in the searched region; others are neither read nor run.
            is_cancelled: Asked often.

        Raises:
            Canceled: is_cancelled said so.
            DeviceMemoryError: the memory does not even hold one tile.
            ModelError: the network failed.
        """
        readers = ThreadPoolExecutor(self.n_readers, thread_name_prefix="reader")
        callers = ThreadPoolExecutor(self.n_callers, thread_name_prefix="caller")
        try:
            # is_wanted is asked in this thread only: GEOS's prepared polygons do not bear several at a time.
            loads = _ahead(
                tiles, lambda tile: readers.submit(self._load, tile, is_wanted(tile)), self.depth, is_cancelled
            )
            groups = _in_groups(loads, self.batch_size)
            yield from _ahead(groups, lambda group: callers.submit(self._predict, group), self.n_callers, is_cancelled)
        finally:
            callers.shutdown(wait=False, cancel_futures=True)
            readers.shutdown(wait=True, cancel_futures=True)  # the raster is closed next, and nobody may be reading it

    def try_tile(self, tile: Tile) -> Trial | None:
        """Read a tile and run it as often as a run has tiles in the network at a time; None: it holds no pixels.

        The first pass of a network is slower than the others: where it is quick, the second counts.

        Raises:
            DeviceMemoryError: the memory does not even hold one tile.
            ModelError: the network failed.
        """
        start = time.monotonic()
        loaded = self._load(tile, True)
        reading = time.monotonic() - start
        if loaded.pixels is None:
            return None
        groups = [[loaded] * self.batch_size.value] * self.n_callers
        with ThreadPoolExecutor(self.n_callers, thread_name_prefix="caller") as callers:
            for _ in range(2):
                start = time.monotonic()
                list(callers.map(self._predict, groups))
                running = time.monotonic() - start
                if running > _QUICK_SECONDS:
                    break
        return Trial(max(reading / self.n_readers, running / (len(groups) * len(groups[0]))))

    @property
    def depth(self) -> int:
        """Give the most tiles that are in memory before the network."""
        return self.n_readers + self.batch_size.value * (self.n_callers + 1)

    def _load(self, tile: Tile, is_wanted: bool) -> _Loaded:
        if not is_wanted:
            return _Loaded(tile, None, TileState.outside)
        try:
            pixels, valid = self._read(tile)
        except RasterReadError as error:
            return _Loaded(tile, None, TileState.quarantined, error)
        if not valid.any():
            return _Loaded(tile, None, TileState.nodata)
        if self.detector.traits.wants_raw:
            return _Loaded(tile, np.concatenate([pixels, valid[None].astype(pixels.dtype)]), TileState.done)
        return _Loaded(tile, self.preprocess.to_network(pixels, tile.outer), TileState.done)

    def _read(self, tile: Tile) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        try:
            return self.source.read(tile.outer)
        except RasterReadError:
            return self.source.read(tile.outer)  # once more: a network drive may have hiccuped

    def _predict(self, group: list[_Loaded]) -> list[Outcome]:
        images = [(item.tile, item.pixels) for item in group if item.pixels is not None]
        found = dict(zip((tile.number for tile, _ in images), self._run(images)))
        return [self._outcome(item, found.get(item.tile.number)) for item in group]

    def _outcome(self, item: _Loaded, found: Detections | TileError | None) -> Outcome:
        if isinstance(found, TileError):
            return Outcome(item.tile, TileState.quarantined, error=found)
        return Outcome(item.tile, item.state, found, item.error)

    def _run(self, images: list[tuple[Tile, NDArray[Any]]]) -> list[Detections | TileError]:
        results: list[Detections | TileError] = []
        while len(results) < len(images):
            part = images[len(results) :][: self.batch_size.value]
            try:
                found = self.detector.predict(np.stack([pixels for _, pixels in part]))
            except DeviceMemoryError:
                if len(part) == 1:
                    raise
                self.batch_size.halve(len(part))
                continue
            except TileError as error:
                results += [error] if len(part) == 1 else self._one_by_one(part)
                continue
            results += [self.preprocess.to_raster(item, tile.outer) for item, (tile, _) in zip(found, part)]
        return results

    def _one_by_one(self, part: list[tuple[Tile, NDArray[Any]]]) -> list[Detections | TileError]:
        """Find out which tile of a batch the model fails on."""
        return [result for image in part for result in self._run([image])]


def _ahead(
    items: Iterable[Any], submit: Callable[[Any], Future[T]], depth: int, is_cancelled: Callable[[], bool]
) -> Iterator[T]:
    """Submit up to `depth` items more than have been asked for, and give the results in order."""
    waiting: deque[Future[T]] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > depth:
            yield _wait(waiting.popleft(), is_cancelled)
    while waiting:
        yield _wait(waiting.popleft(), is_cancelled)


def _wait(future: Future[T], is_cancelled: Callable[[], bool]) -> T:
    while True:
        if is_cancelled():
            raise Canceled
        try:
            return future.result(timeout=_POLL_SECONDS)
        except FutureTimeoutError:
            if future.done():  # the work itself timed out, not the wait
                raise


def _in_groups(items: Iterable[_Loaded], batch_size: BatchSize) -> Iterator[list[_Loaded]]:
    """Cut the stream so that each group holds at most one batch of tiles to run; empty tiles ride along."""
    group: list[_Loaded] = []
    n_images = 0
    for item in items:
        group.append(item)
        n_images += item.pixels is not None
        if n_images >= batch_size.value or len(group) >= 64 * batch_size.value:
            yield group
            group, n_images = [], 0
    if group:
        yield group
