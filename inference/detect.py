"""The detection: from a job to finished objects, read from top to bottom.

job ──> model package ──> detector ─┐
└────> raster ──> region ──> tiles ┴──> pipeline ──> journal ──> merge ──> georeference ──> files of objects
└───────────── run.py ─────────────┘ └───── search.py ─────┘ └───────────────── results.py ─────────────────┘

Rasters that are searched one by one go this way in turn (items.py), with one detector.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from .errors import JobError, RasterChangedError
from .events import Message, Report
from .items import search_items
from .job import DetectionJob
from .jobs import item_folder, objects_path
from .journal import JobState, Journal, TileState
from .outlook import Outlook, check_limit, look_ahead
from .rasters.access import ALONE, RasterAccess
from .rasters.camera import camera_frame
from .reshaping import reshaped_geometry
from .results import hand_out
from .run import OpenModel, Run, fingerprint, prepare
from .search import search, tell_quarantined

_TELL_SECONDS = 15.0


def detect(
    job: DetectionJob,
    folder: Path,
    report: Report,
    is_cancelled: Callable[[], bool],
    access: RasterAccess = ALONE,
) -> dict[str, Any]:
    """Run a job.

    Args:
        job: What to do.
        folder: The job's own folder: journal and files of finished objects go there.
        report: Told what happens.
        is_cancelled: Asked often.
        access: What reading the raster needs besides its name.

    Returns:
        The summary: counts, the plan, the time.

    Raises:
        Canceled: is_cancelled said so; what was found so far is in the journal.
        InferenceError: the job cannot be done, or not be finished.
    """
    access = replace(access, on_wait=access.on_wait or _WaitTeller(report))
    with tempfile.TemporaryDirectory(prefix="model-", dir=folder, ignore_cleanup_errors=True) as unpacked:
        model = OpenModel(job, Path(unpacked))
        paths = (objects_path(folder, number) for number in count(1))

        def search_one(job: DetectionJob, name: str, report: Report) -> dict[str, Any]:
            return _detect_raster(job, model, folder / name, paths, report, is_cancelled, access)

        try:
            if job.processing_mode == "items":
                return search_items(job, search_one, report, is_cancelled)
            return search_one(job, "", report)
        finally:
            model.close()


def _detect_raster(
    job: DetectionJob,
    model: OpenModel,
    folder: Path,
    paths: Iterator[Path],
    report: Report,
    is_cancelled: Callable[[], bool],
    access: RasterAccess,
) -> dict[str, Any]:
    """Search one raster, or several as one mosaic."""
    start = time.monotonic()
    run = prepare(job, model, report, access)
    try:
        outlook = look_ahead(run, is_cancelled)
        report(Message("info", "plan", outlook.text))
        if job.plan_only:
            return _plan_summary(run, outlook, time.monotonic() - start)
        check_limit(outlook, job.max_tiles)
        identity, key = run.source.pixels.identity(), fingerprint(run)
        place = item_folder(folder, key) if job.processing_mode == "items" else folder
        camera = None if run.source.info.crs_wkt else camera_frame(job.rasters[0].source)
        if camera is not None:
            report(Message("info", "camera", camera.text))
        with Journal.open(place, key, len(run.plan.grid)) as journal:
            search(run, journal, report, is_cancelled)
            if run.source.pixels.identity() != identity:
                raise RasterChangedError.of(run.source.name)
            tell_quarantined(run, journal, report)
            counts = hand_out(run, journal, paths, report, is_cancelled)
            journal.set_state(JobState.done)
            summary = _summary(run, journal, counts, time.monotonic() - start)
            summary = {**summary, "plan": outlook.to_dict()}
            return summary if camera is None else {**summary, "camera": camera.as_json()}
    finally:
        run.source.close()


def _plan_summary(run: Run, outlook: Outlook, seconds: float) -> dict[str, Any]:
    grid = run.plan.grid
    return {
        "plan": outlook.to_dict(),
        "tiles": len(grid),
        "tile_size": grid.tile_size,
        "padding": grid.padding,
        "device": run.device,
        "model_sha256": run.sha256,
        "seconds": round(seconds, 3),
    }


class _WaitTeller:
    """Tells that a server is waited for, from any thread, and not each time."""

    def __init__(self, report: Report) -> None:
        self._report, self._lock = report, threading.Lock()
        self._next = 0.0

    def __call__(self, reason: str, seconds: float) -> None:
        with self._lock:
            now = time.monotonic()
            is_due = now >= self._next
            self._next = now + _TELL_SECONDS if is_due else self._next
        if is_due:
            self._report(Message("info", "waiting", f"{reason} It is tried again in {math.ceil(seconds)} s."))


def _summary(run: Run, journal: Journal, counts: dict[str, int], seconds: float) -> dict[str, Any]:
    tiles = journal.counts()
    if tiles[TileState.planned]:
        raise JobError(f"{tiles[TileState.planned]} tiles were never run: the run is not complete.")
    grid = run.plan.grid
    return {
        "objects": sum(counts.values()),
        "geometry": reshaped_geometry(run.detector.traits.geometry, run.arguments),
        "fields": [dict(field) for field in run.detector.traits.fields],
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
