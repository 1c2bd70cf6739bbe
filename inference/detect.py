"""The detection: from a job to finished objects, read from top to bottom.

job ──> model package ──> detector ─┐
└────> raster ──> region ──> tiles ┴──> pipeline ──> journal ──> merge ──> georeference ──> files of objects
└───────────── run.py ─────────────┘ └───── search.py ─────┘ └───────────────── results.py ─────────────────┘
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .detectors.protocol import close_detector
from .errors import JobError, RasterChangedError
from .events import Message, Report
from .job import DetectionJob
from .journal import JobState, Journal, TileState
from .rasters.access import ALONE, RasterAccess
from .reshaping import reshaped_geometry
from .results import hand_out
from .run import Run, fingerprint, prepare
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
    start = time.monotonic()
    access = replace(access, on_wait=access.on_wait or _WaitTeller(report))
    with tempfile.TemporaryDirectory(prefix="model-", dir=folder, ignore_cleanup_errors=True) as unpacked:
        run = prepare(job, Path(unpacked), report, access)
        try:
            identity = run.source.pixels.identity()
            with Journal.open(folder, fingerprint(run), len(run.plan.grid)) as journal:
                search(run, journal, report, is_cancelled)
                if run.source.pixels.identity() != identity:
                    raise RasterChangedError.of(run.source.name)
                tell_quarantined(run, journal, report)
                counts = hand_out(run, journal, folder, report, is_cancelled)
                journal.set_state(JobState.done)
                return _summary(run, journal, counts, time.monotonic() - start)
        finally:
            run.source.close()
            close_detector(run.detector)


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
