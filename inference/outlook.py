"""What a run will have to do, told before it starts: pixels, tiles, time as a trial tile has it, memory."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from .errors import TOO_LARGE, JobError
from .events import Canceled
from .fit import ground_cell
from .georeference import boxes_to_map
from .pipeline import Trial
from .rasters.source import RasterInfo
from .region import Region
from .run import Run, make_pipeline
from .tiling import TileGrid

_COUNTED = 200_000
"""Tiles up to which each one is compared with the mask."""
_SAMPLED = 50_000
"""Tiles of a larger grid that are."""
_CHUNK = 20_000
_FEWEST_FOR_TRIAL = 10
"""Tiles below which a run is over before its end could be foretold."""
_TRIAL_PLACES = (0.5, 0.25, 0.75, 0.375, 0.625, 0.125, 0.875)
"""Where a tile with pixels is looked for, as shares of the tiles."""


@dataclass(frozen=True)
class Outlook:
    """A run before it starts.

    Attributes:
        width, height: Of the raster as the model sees it, in pixels.
        cell_size: Side of a pixel in map units.
        ground: The same in metres on the ground; None: not known.
        area_width, area_height: Of the searched window, in pixels.
        tiles: That will be looked at, those without data among them: these are found while running.
        outside: Tiles that lie outside the searched area and are skipped.
        is_counted: Every tile was looked at; otherwise the two numbers are estimates.
        seconds: For all tiles, from a trial tile; None: none was run.
        memory: In bytes, of the worker and its pixels; None: not known on this system.
        pixel_memory: Of the pixels alone.
    """

    width: int
    height: int
    cell_size: float
    ground: float | None
    area_width: int
    area_height: int
    tiles: int
    outside: int
    is_counted: bool
    seconds: float | None
    memory: int | None
    pixel_memory: int

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON values."""
        return asdict(self)

    @property
    def text(self) -> str:
        """Say it in words."""
        about = "" if self.is_counted else "about "
        size = f" of {self.ground:.3g} m on the ground" if self.ground else f" of {self.cell_size:.6g} map units"
        parts = [f"The raster has {self.width} x {self.height} pixels{size}"]
        if (self.area_width, self.area_height) != (self.width, self.height):
            parts.append(f", of which {self.area_width} x {self.area_height} are searched")
        parts.append(f": {about}{_count(self.tiles, 'tile')}")
        if self.outside:
            parts.append(f" to look at, and {about}{self.outside} outside the searched area that are skipped")
        parts.append(". Tiles without data are found, and skipped, while the run goes on.")
        if self.seconds is not None:
            parts.append(f" A trial tile says: about {duration(self.seconds)}.")
        if self.memory is not None:
            parts.append(f" About {_gigabytes(self.memory)} of memory.")
        else:
            parts.append(f" At least {_gigabytes(self.pixel_memory)} of memory for pixels, besides the model.")
        return "".join(parts)


def look_ahead(run: Run, is_cancelled: Callable[[], bool]) -> Outlook:
    """Find out what a run has to do.

    Args:
        run: The run.
        is_cancelled: Asked between the steps.

    Raises:
        Canceled: is_cancelled said so.
        ModelError: the network failed on the trial tile.
        DeviceMemoryError: the memory does not hold one tile.
    """
    grid, info, area = run.plan.grid, run.source.info, run.region.window
    touched = touched_tiles(grid, run.region)
    if is_cancelled():
        raise Canceled
    trial = None
    is_one_of_many = run.job.processing_mode == "items"
    if run.job.plan_only or (touched.count >= _FEWEST_FOR_TRIAL and not is_one_of_many):
        trial = _trial(run, touched, is_cancelled)
    if is_cancelled():
        raise Canceled
    place, pixels = ground_cell(info), _pixel_memory(run)
    process = _process_memory()
    return Outlook(
        info.width, info.height, info.cell_size[0], place[0] if place else None, area.width, area.height,
        touched.count, len(grid) - touched.count, touched.is_counted,
        None if trial is None else round(trial.seconds * touched.count, 3),
        None if process is None else process + pixels, pixels,
    )  # fmt: skip


def check_limit(outlook: Outlook, most: int | None) -> None:
    """Refuse a run that is larger than the user has bargained for.

    Raises:
        JobError: it has more tiles than `most`.
    """
    if most is None or outlook.tiles <= most:
        return
    time = f" and take about {duration(outlook.seconds)}" if outlook.seconds is not None else ""
    about = "" if outlook.is_counted else "about "
    raise JobError(
        f"The run would have to look at {about}{outlook.tiles} tiles{time}; the limit is {most}.",
        hint="Choose an extent, a mask or a larger cell size, or raise Maximum number of tiles to go on.",
        tiles=outlook.tiles,
        seconds=outlook.seconds,
        reason=TOO_LARGE,
    )


# -- Tiles -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Touched:
    """The tiles of a grid that can own objects of the searched region.

    Attributes:
        count: How many.
        is_counted: Exactly so many; otherwise it is an estimate.
        numbers: Some of them in order, or all; None: the grid's are all touched.
    """

    count: int
    is_counted: bool
    numbers: NDArray[np.int64] | None = None

    def at(self, share: float) -> int:
        """Give the tile at a share of the way from the first to the last."""
        n = self.count if self.numbers is None else len(self.numbers)
        index = min(int(n * share), n - 1)
        return index if self.numbers is None else int(self.numbers[index])


def touched_tiles(grid: TileGrid, region: Region) -> Touched:
    """Compare the tiles with the searched region: each one, or a sample of a grid that is very large."""
    n = len(grid)
    if region.shape is None:
        return Touched(n, is_counted=True)
    is_counted = n <= _COUNTED
    # By chance and not at even steps: these could walk up and down along one column.
    numbers = np.arange(n) if is_counted else np.sort(np.random.default_rng(0).integers(0, n, _SAMPLED))
    chunks = [numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK)]
    is_touched = np.concatenate([_touches(grid, region, chunk) for chunk in chunks])
    share = is_touched.mean()
    count = int(is_touched.sum()) if is_counted else math.ceil(float(share) * n)
    return Touched(count, is_counted, numbers[is_touched])


def _touches(grid: TileGrid, region: Region, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    corners = boxes_to_map(grid.inner_boxes(numbers), region.info.transform)
    return np.asarray(shapely.intersects(region.shape, shapely.polygons(corners)), np.bool_)


def _trial(run: Run, touched: Touched, is_cancelled: Callable[[], bool]) -> Trial | None:
    """Run a tile in the middle of the search, or the next best that has pixels."""
    pipeline = make_pipeline(run)
    if touched.count == 0 or (touched.numbers is not None and len(touched.numbers) == 0):
        return None
    for number in dict.fromkeys(touched.at(share) for share in _TRIAL_PLACES):
        if is_cancelled():
            raise Canceled
        trial = pipeline.try_tile(run.plan.grid[number])
        if trial is not None:
            return trial
    return None


# -- Memory ------------------------------------------------------------------------------------------------------------


def _pixel_memory(run: Run) -> int:
    """Give the bytes of the tiles that wait for the network, or are in it."""
    width, height = run.plan.network_size
    info: RasterInfo = run.source.info
    kept = 1 if info.dtype == "uint8" else 4
    waiting = make_pipeline(run).depth * kept
    in_network = run.plan.batch_size * run.detector.traits.n_callers * 4
    return width * height * info.n_bands * (waiting + in_network)


def _process_memory() -> int | None:
    """Give the most memory that this process has had so far, in bytes, model and trial tile among it."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -- Words -------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Give a duration as people say it: 8 s, 4 min, 2 h, 3 days."""
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(1, round(seconds / unit))} {name}"
    return f"{round(seconds / 86400)} days"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
