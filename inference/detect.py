"""The detection: from a job to finished objects, read from top to bottom.

job ──> model package ──> detector ─┐
 └────> raster ──> region ──> tiles ┴──> pipeline ──> journal ──> merge ──> georeference ──> files of objects
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .detections import Detections
from .detectors import load_detector
from .detectors.augmented import MAP_ORIENTATIONS, AugmentedDetector
from .detectors.protocol import Detector, DetectorSettings
from .device import choose_device
from .errors import DiskFullError, JobError, ModelError, ModelHashError, OutputError, RasterReadError
from .events import Canceled, Message, Objects, Progress, Report
from .fit import fit_warnings
from .georeference import boxes_to_map, rings_to_wkb
from .job import DetectionJob, parse_parallel_factor
from .jobs import objects_path
from .journal import JobState, Journal, TileResult, TileState
from .merge import Band, Found, Rule, join, strongest_first, suppress
from .models.arguments import resolve_arguments
from .models.package import ModelPackage, open_package
from .object_file import MapObjects, write_objects
from .pipeline import BatchSize, Outcome, Pipeline
from .plan import Plan, make_plan, usable_cores
from .preprocess import Preprocess
from .rasters.gdal_raster import GdalRaster
from .region import Region, make_region
from .tiling import Tile, TileGrid

SEAM_TOLERANCE = 8.0
"""Pixels by which two tiles may disagree about the place of the same object, for networks that are not exact."""
_MOST_SEAM_OVERLAP = 0.5
_EDGE = 2.0
_OBJECTS_PER_FILE = 5000
_CACHE_LIMITS = (64 * 2**20, 1024 * 2**20)
_TOLD_QUARANTINES = 5
_PROGRESS_SECONDS = 0.2


def detect(job: DetectionJob, folder: Path, report: Report, is_cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Run a job.

    Args:
        job: What to do.
        folder: The job's own folder: journal and files of finished objects go there.
        report: Told what happens.
        is_cancelled: Asked often.

    Returns:
        The summary: counts, the plan, the time.

    Raises:
        Canceled: is_cancelled said so; what was found so far is in the journal.
        InferenceError: the job cannot be done, or not be finished.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="model-", dir=folder, ignore_cleanup_errors=True) as unpacked:
        run = _prepare(job, Path(unpacked), report)
        try:
            with Journal.open(folder, _fingerprint(job, run), len(run.plan.grid)) as journal:
                _find(run, journal, report, is_cancelled)
                _tell_quarantined(run, journal, report)
                counts = _hand_out(run, journal, folder, report, is_cancelled)
                journal.set_state(JobState.done)
                return _summary(run, journal, counts, time.monotonic() - start)
        finally:
            run.source.close()


@dataclass(frozen=True)
class Run:
    """Everything that a job's words stand for."""

    job: DetectionJob
    package: ModelPackage
    sha256: str
    arguments: Mapping[str, Any]
    source: GdalRaster
    region: Region
    detector: Detector
    plan: Plan
    device: str
    n_threads: int


def _prepare(job: DetectionJob, unpacked: Path, report: Report) -> Run:
    package = open_package(job.model)
    sha256 = package.sha256()
    if job.model_sha256 not in ("", sha256):
        raise ModelHashError("The model package has changed since the job was made.", hint="Start the job anew.")
    definition = package.definition
    resolved = resolve_arguments(definition, job.arguments)
    source = GdalRaster(job.raster, definition.input, job.cell_size, _cache_bytes(job))
    region = make_region(job, source.info)
    device = choose_device(job.processor, job.gpu_id, definition.kind)
    n_threads = parse_parallel_factor(job.parallel_processing_factor, usable_cores())
    detector = load_detector(package, resolved.values, DetectorSettings(device, n_threads), unpacked)
    if resolved.values["test_time_augmentation"]:
        detector = AugmentedDetector(
            detector, MAP_ORIENTATIONS, resolved.values["threshold"], resolved.values["nms_overlap"]
        )
    plan = make_plan(definition, resolved.values, job.arguments, detector.traits, region, device)
    for text in resolved.warnings:
        report(Message("warning", "argument", text))
    for text in fit_warnings(definition, source.info):
        report(Message("warning", "fit", text))
    for text in (f"Model: {definition.name} {definition.version}".strip() + f", on {device}.", *plan.notes):
        report(Message("info", "plan", text))
    return Run(job, package, sha256, resolved.values, source, region, detector, plan, device, n_threads)


def _cache_bytes(job: DetectionJob) -> int:
    """Give GDAL's cache a sixteenth of the memory, within limits: rows of tiles share blocks, decoded once."""
    low, high = _CACHE_LIMITS
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 4 * low
    return int(min(max(memory // 16, low), high))


def _fingerprint(job: DetectionJob, run: Run) -> str:
    """Hash all that decides the result; device, threads and batch size do not."""
    try:
        stat = Path(job.raster).stat()
        identity: list[float] = [stat.st_size, stat.st_mtime]
    except OSError:
        identity = []
    grid, info = run.plan.grid, run.source.info
    facts = [
        1, run.sha256, job.raster, identity, info.width, info.height, list(info.transform), info.crs_wkt,
        job.extent, job.cell_size, job.mask_wkb, grid.tile_size, grid.padding, grid.stride, run.plan.network_size,
        {name: run.arguments[name] for name in sorted(run.arguments) if name != "batch_size"},
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _find(run: Run, journal: Journal, report: Report, is_cancelled: Callable[[], bool]) -> None:
    """Run the tiles that the journal does not have yet, and commit what they hold, batch by batch."""
    plan, finished = run.plan, journal.finished()
    failed_before = {number for number, _ in journal.quarantined()}
    pipeline = Pipeline(
        run.source,
        Preprocess(plan.grid.tile_size, plan.network_size),
        run.detector,
        BatchSize(plan.batch_size),
        n_readers=max(1, run.n_threads // 2),
        n_callers=run.detector.traits.n_callers,
    )
    todo = (tile for tile in plan.grid if tile.number not in finished or tile.number in failed_before)
    clock = _Clock(len(plan.grid), len(finished) - len(failed_before))
    report(clock.progress(clock.done, journal.n_objects()))
    n_invalid, n_valid_boxes = 0, journal.n_objects()
    for outcomes in pipeline.run(todo, run.region.touches, is_cancelled):
        valid = [_valid(outcome) for outcome in outcomes]
        n_invalid += sum(before is not after for before, after in zip(outcomes, valid))
        n_valid_boxes += sum(len(outcome.detections or ()) for outcome in valid)
        journal.commit([_owned(run, outcome) for outcome in valid])
        clock.count(outcomes)
        if clock.is_due():
            report(clock.progress(clock.done, journal.n_objects()))
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
    is_dense = run.detector.traits.is_dense
    keep = run.plan.grid.owns(tile, found.anchors, 0.0 if is_dense else SEAM_TOLERANCE)
    if run.arguments["exclude_pad_detections"] and not is_dense:
        keep &= ~_is_cut_by_tile(run.plan.grid, tile, found)
    return TileResult(tile.number, outcome.state, found.take(keep))


def _is_cut_by_tile(grid: TileGrid, tile: Tile, found: Detections) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Tell which boxes reach an edge of what the tile sees, where the raster goes on."""
    x0, y0, x1, y1 = found.boxes.T
    outer = tile.outer
    left = (x0 <= outer.x + _EDGE) & (outer.x > 0)
    top = (y0 <= outer.y + _EDGE) & (outer.y > 0)
    right = (x1 >= outer.right - _EDGE) & (outer.right < grid.width)
    bottom = (y1 >= outer.bottom - _EDGE) & (outer.bottom < grid.height)
    is_cut: np.ndarray[Any, np.dtype[np.bool_]] = left | top | right | bottom
    return is_cut


def _tell_quarantined(run: Run, journal: Journal, report: Report) -> None:
    """Say which places are missing from the result.

    Raises:
        RasterReadError: no tile could be read at all.
    """
    n_quarantined, n_done = journal.counts()[TileState.quarantined], journal.counts()[TileState.done]
    if n_quarantined == 0:
        return
    windows = [run.plan.grid[number].inner for number, _ in journal.quarantined()]
    places = "; ".join(f"columns {w.x} to {w.right}, rows {w.y} to {w.bottom}" for w in windows[:_TOLD_QUARANTINES]) + (
        f"; and {len(windows) - _TOLD_QUARANTINES} more" if len(windows) > _TOLD_QUARANTINES else ""
    )
    if n_done == 0:
        raise RasterReadError(
            f"The raster '{run.job.raster}' cannot be read ({places}).",
            hint="The file is damaged or incomplete: copy it again from its source.",
        )
    text = (
        f"{n_quarantined} of {len(run.plan.grid)} tiles could not be read and are missing from the result: {places}. "
        "The raster is damaged there: copy it again from its source, and run the detection for that extent."
    )
    report(Message("warning", "quarantined", text))


def _hand_out(
    run: Run, journal: Journal, folder: Path, report: Report, is_cancelled: Callable[[], bool]
) -> dict[str, int]:
    """Merge what the journal holds, and write finished objects for QGIS; give the number of objects of each class."""
    classes = run.package.definition.classes
    counts = dict.fromkeys((item.name for item in classes), 0)
    for number, found in enumerate(_in_portions(_merged(run, journal)), 1):
        if is_cancelled():
            raise Canceled
        path = objects_path(folder, number)
        _write(path, _to_map(run, found))
        report(Objects(str(path), len(found)))
        for label, count in zip(*np.unique(found.detections.labels, return_counts=True)):
            counts[classes[label].name] += int(count)
    return counts


def _merged(run: Run, journal: Journal) -> Iterator[Found]:
    """Give finished objects, each once, in an order that depends on nothing but the objects."""
    overlap = float(run.arguments["nms_overlap"])
    is_dense = run.detector.traits.is_dense
    rule = Rule(overlap) if is_dense else Rule(min(overlap, _MOST_SEAM_OVERLAP), across_tiles_only=True)
    bands: Iterator[Band] = suppress(_bands(run, journal), rule)
    if run.job.run_nms:
        bands = suppress(_all_open(bands), Rule(run.job.max_overlap_ratio))
    for band in bands:
        yield band.found.take(strongest_first(band.found))


def _bands(run: Run, journal: Journal) -> Iterator[Band]:
    """Give the journal's detections row by row of tiles."""
    grid, n_columns = run.plan.grid, len(run.plan.grid.columns)
    tops = np.full(len(grid.rows) + 1, np.inf)
    for number, y_min, _ in journal.y_extents():
        row = number // n_columns
        tops[row] = min(tops[row], y_min)
    frontiers = np.minimum.accumulate(tops[::-1])[::-1]
    wanted = _wanted_labels(run)
    for row in range(len(grid.rows)):
        parts = journal.read_range(row * n_columns, (row + 1) * n_columns - 1)
        found = join([_as_found(run, number, detections, wanted) for number, detections in parts])
        yield Band(found, float(frontiers[row + 1]))


def _wanted_labels(run: Run) -> np.ndarray[Any, np.dtype[np.intp]]:
    wanted = run.job.objects_of_interest
    classes = run.package.definition.classes
    return np.array([i for i, item in enumerate(classes) if not wanted or item.name in wanted], np.intp)


def _as_found(run: Run, number: int, detections: Detections, wanted: np.ndarray[Any, Any]) -> Found:
    grid, tile = run.plan.grid, run.plan.grid[number]
    # Before anything is suppressed: which tiles happened to be run around the polygons must not matter.
    chosen = detections.take(np.isin(detections.labels, wanted) & run.region.contains(detections.anchors))
    n = len(chosen)
    if run.detector.traits.is_dense:
        rank, is_open = np.zeros(n, np.int8), np.ones(n, np.bool_)
    else:
        rank = (~grid.owns(tile, chosen.anchors)).astype(np.int8)
        is_open = grid.seam_distance(tile, chosen.anchors) <= 2 * SEAM_TOLERANCE
    return Found(chosen, np.full(n, number, np.int64), rank, is_open)


def _all_open(bands: Iterator[Band]) -> Iterator[Band]:
    for band in bands:
        found = band.found
        ones = np.ones(len(found), np.bool_)
        yield Band(Found(found.detections, found.tiles, np.zeros_like(found.rank), ones), band.frontier)


def _in_portions(stream: Iterator[Found]) -> Iterator[Found]:
    """Collect small rows and cut large ones, so that each file holds a handy number of objects."""
    waiting: list[Found] = []
    for found in stream:
        waiting.append(found)
        if sum(len(part) for part in waiting) >= _OBJECTS_PER_FILE:
            yield from _cut(join(waiting))
            waiting = []
    yield from _cut(join(waiting))


def _cut(found: Found) -> Iterator[Found]:
    for start in range(0, len(found), _OBJECTS_PER_FILE):
        yield found.take(np.arange(start, min(start + _OBJECTS_PER_FILE, len(found))))


def _to_map(run: Run, found: Found) -> MapObjects:
    d = found.detections
    rings = boxes_to_map(d.boxes, run.source.info.transform)
    return MapObjects(rings_to_wkb(rings), d.scores, d.labels, found.tiles, run.region.is_cut(d.boxes))


def _write(path: Path, objects: MapObjects) -> None:
    try:
        write_objects(path, objects)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"The disk of {path.parent} is full.", hint="Make room, then start again.") from error
        raise OutputError(f"The file {path} cannot be written: {error.strerror or error}.") from error


def _summary(run: Run, journal: Journal, counts: dict[str, int], seconds: float) -> dict[str, Any]:
    tiles = journal.counts()
    if tiles[TileState.planned]:
        raise JobError(f"{tiles[TileState.planned]} tiles were never run: the run is not complete.")
    grid = run.plan.grid
    return {
        "objects": sum(counts.values()),
        "class_counts": counts,
        "tiles": len(grid),
        "tiles_by_state": {state.name: count for state, count in tiles.items()},
        "tile_size": grid.tile_size,
        "padding": grid.padding,
        "stride": grid.stride,
        "receptive_field_radius": run.detector.traits.receptive_field_radius,
        "is_exact": run.plan.is_exact,
        "device": run.device,
        "model_sha256": run.sha256,
        "seconds": round(seconds, 3),
    }
