"""The search: tiles through the network, and what each may claim into the journal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import shapely

from .detections import Detections, shapes_of
from .errors import InferenceError, ModelError, RasterFetchError, RasterReadError, TileError
from .events import Message, Progress, Report
from .joining import touches_inner
from .journal import Journal, TileResult, TileState
from .pipeline import Outcome
from .run import SEAM_TOLERANCE, Run, make_pipeline
from .tiling import Tile

_TOLD_QUARANTINES = 5
_PROGRESS_SECONDS = 0.2


def search(run: Run, journal: Journal, report: Report, is_cancelled: Callable[[], bool]) -> None:
    """Run the tiles that the journal does not have yet, and commit what they hold, batch by batch."""
    plan, finished = run.plan, journal.finished()
    failed_before = {number for number, _ in journal.quarantined()}
    pipeline = make_pipeline(run)
    todo = (tile for tile in plan.grid if tile.number not in finished or tile.number in failed_before)
    clock = _Clock(len(plan.grid), len(finished) - len(failed_before))
    report(clock.progress(clock.done, journal.n_objects()))
    n_invalid, n_full, n_valid_boxes = 0, 0, journal.n_objects()
    for outcomes in pipeline.run(todo, run.region.touches, is_cancelled):
        valid = [_valid(outcome) for outcome in outcomes]
        n_invalid += sum(before is not after for before, after in zip(outcomes, valid))
        n_valid_boxes += sum(len(outcome.detections or ()) for outcome in valid)
        n_full += sum(len(outcome.detections or ()) == run.detector.traits.max_detections for outcome in valid)
        journal.commit([_owned(run, outcome) for outcome in valid])
        clock.count(outcomes)
        if clock.is_due():
            report(clock.progress(clock.done, journal.n_objects()))
    if n_full:
        text = (
            f"On {n_full} tiles the network gave {run.detector.traits.max_detections} objects, as many as it can: "
            "there may be more. Set the argument tile_size to a smaller value."
        )
        report(Message("warning", "full-tiles", text))
    if n_invalid:
        report(Message("warning", "invalid-output", f"The model gave invalid boxes on {n_invalid} tiles; dropped."))
        if n_valid_boxes == 0 and n_invalid == journal.counts()[TileState.done]:
            raise ModelError("The model gives no valid boxes: its output is not finite.")


class _Clock:
    """Rate and time left, from the tiles that were really run."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._first = done
        self._start = time.monotonic()
        self._told = 0.0

    def count(self, outcomes: list[Outcome]) -> None:
        self.done += len(outcomes)

    def is_due(self) -> bool:
        """Tell whether it is time for the next word: a run of a million tiles must not send a million."""
        now = time.monotonic()
        if now - self._told < _PROGRESS_SECONDS and self.done < self.total:
            return False
        self._told = now
        return True

    def progress(self, done: int, n_objects: int) -> Progress:
        elapsed, n_new = time.monotonic() - self._start, done - self._first
        rate = n_new / elapsed if n_new and elapsed > 0 else None
        return Progress(done, self.total, n_objects, rate, (self.total - done) / rate if rate else None)


def _valid(outcome: Outcome) -> Outcome:
    """Drop boxes that are not finite or have no extent."""
    found = outcome.detections
    if found is None:
        return outcome
    is_valid = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
    is_valid &= (found.boxes[:, 2:] >= found.boxes[:, :2]).all(axis=1)
    return outcome if is_valid.all() else Outcome(outcome.tile, outcome.state, found.take(is_valid))


def _owned(run: Run, outcome: Outcome) -> TileResult:
    """Keep what the tile may claim."""
    tile, found = outcome.tile, outcome.detections
    error = outcome.error.code if outcome.error else ""
    if found is None:
        return TileResult(tile.number, outcome.state, None, error)
    if run.detector.traits.is_joined:
        return TileResult(tile.number, outcome.state, _fragments(run, tile, found))
    is_dense = run.detector.traits.is_dense
    keep = run.plan.grid.owns(tile, found.anchors)
    if not is_dense:
        # Lines overlap nothing, so that two of them could not be told to be one object: no tolerance for these.
        is_line = found.shapes is not None and shapely.get_dimensions(found.shapes) == 1
        keep |= ~np.asarray(is_line) & run.plan.grid.owns(tile, found.anchors, SEAM_TOLERANCE)
    if run.arguments["exclude_pad_detections"] and not is_dense:
        keep &= ~run.plan.grid.reaches_end_of_view(tile, found.boxes)
    return TileResult(tile.number, outcome.state, found.take(keep))


def _fragments(run: Run, tile: Tile, found: Detections) -> Detections:
    """Keep the outlines that have pixels in the inner window; what shows in the padding alone is the neighbour's.

    Whether one is cut is asked of box and outline: a mask may end a little before the box that it was drawn in. A
    package's own program may give points and lines, too, whatever it says of itself.
    """
    shapes, grid = shapes_of(found), run.plan.grid
    is_area = shapely.get_dimensions(shapes) == 2
    kept = found.take(np.where(is_area, touches_inner(tile, grid, shapes), grid.owns(tile, found.anchors)))
    bounds = shapely.bounds(shapes_of(kept)).reshape(-1, 4)
    low, high = np.minimum(kept.boxes[:, :2], bounds[:, :2]), np.maximum(kept.boxes[:, 2:], bounds[:, 2:])
    return replace(kept, boxes=np.concatenate([low, high], axis=1))


def tell_quarantined(run: Run, journal: Journal, report: Report) -> None:
    """Say which places are missing from the result, and why.

    Raises:
        RasterReadError: no tile could be read at all.
        ModelError: the model failed on all tiles.
    """
    n_done, failed = journal.counts()[TileState.done], list(journal.quarantined())
    for code in dict.fromkeys(error for _, error in failed):
        numbers = [number for number, error in failed if error == code]
        places = _places(run, numbers)
        if n_done == 0:
            raise _nothing_done(run, code, places)
        reason, remedy = _QUARANTINES[code]
        text = f"{len(numbers)} of {len(run.plan.grid)} tiles {reason} and are missing from the result: {places}."
        report(Message("warning", "quarantined", f"{text} {remedy}"))


_QUARANTINES = {
    RasterReadError.code: (
        "could not be read",
        "The raster is damaged there: copy it again from its source, and run the detection for that extent.",
    ),
    RasterFetchError.code: (
        "did not come from their server",
        "Run the detection again for that extent when the server answers well.",
    ),
    TileError.code: ("made the model's own program fail", "The run's log holds what it said."),
}


def _places(run: Run, numbers: list[int]) -> str:
    windows = [run.plan.grid[number].inner for number in numbers]
    places = "; ".join(f"columns {w.x} to {w.right}, rows {w.y} to {w.bottom}" for w in windows[:_TOLD_QUARANTINES])
    n_more = len(windows) - _TOLD_QUARANTINES
    return places + (f"; and {n_more} more" if n_more > 0 else "")


def _nothing_done(run: Run, code: str, places: str) -> InferenceError:
    if code == TileError.code:
        return ModelError(
            f"The model's own program fails on every tile ({places}).",
            hint="The run's log holds what it said; ask whoever made the package.",
        )
    if code == RasterFetchError.code:
        return RasterFetchError(
            f"No pixels of '{run.source.name}' came from their server ({places}).",
            hint="Look whether QGIS shows the layer there, and run the detection again later.",
        )
    return RasterReadError(
        f"The raster '{run.source.name}' cannot be read ({places}).",
        hint="The file is damaged or incomplete: copy it again from its source.",
    )
