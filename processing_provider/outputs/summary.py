"""The summary of a run, for programs: what was searched with what, what became of each tile, where the objects are.

Schema 1; names are only added, never renamed or taken away:

    kestrel_summary     1
    job_id, kestrel_version
    started, finished   UTC, ISO 8601; seconds: how long it took
    model               name, version, sha256, license
    arguments           as given; objects_of_interest: class names, empty: all
    rasters             one each: name, kind, source (no sign-in, nothing behind a "?")
    search              extent [xmin, ymin, xmax, ymax] and cell_size in the units of crs; is_masked; processing_mode
    output_crs          of the new layer
    device, versions    processor, and the worker's libraries
    tiling              tile_size, padding, stride, receptive_field_radius (pixels), is_exact
    accounting          tiles: planned = done + nodata + outside + quarantined
    items               of rasters that were searched one by one, one each: name, and either objects, tiles, seconds and
                        camera, or error (its code) and text
    camera              of a photo without georeference: position [longitude, latitude], height, yaw, pitch, and
                        footprint, a GeoJSON polygon in WGS 84 that is_approximate
    geometry            "box", "polygon", "point" or "line"
    objects             how many; classes: the same by class name
    outputs             one each: kind ("layer", "append" or "service"), target, count, and for a service url and itemId

A value that is not known is null.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qgis.core import QgsCoordinateReferenceSystem, QgsRectangle

from ...inference.errors import OutputError
from ...inference.job import DetectionJob
from ...inference.models.definition import ModelDefinition
from ..text import without_secrets
from ..version import plugin_version

_SCHEMA = 1
_TILING = ("tile_size", "padding", "stride", "receptive_field_radius", "is_exact")
_OUTCOMES = ("done", "nodata", "outside", "quarantined")


@dataclass(frozen=True)
class Written:
    """One place that has the objects now.

    Attributes:
        kind: "layer", "append" or "service".
        target: Where it is, without anything secret.
        count: How many objects of the run are there.
        details: Further members.
    """

    kind: str
    target: str
    count: int
    details: Mapping[str, Any] = field(default_factory=dict)


def result_of(written: Sequence[Written]) -> dict[str, str]:
    """Give what the operation's outObjects would be: {"url", "itemId"} of a service, {"uri"} of anything else."""
    for item in written:
        if item.kind == "service":
            return {"url": item.target, **{key: item.details[key] for key in ("itemId",) if item.details.get(key)}}
    return {"uri": written[0].target}


@dataclass(frozen=True)
class RunStory:
    """What the summary is made of.

    Attributes:
        job: What was to be done.
        definition: The model.
        crs: Of the (first) raster.
        extent: Of the raster, where the job has none.
        cell_size: Of the raster, where the job has none.
        output_crs: Of the new layer.
        told: The worker's own summary.
        items: What became of each raster, where they were searched one by one.
        versions: The worker's libraries.
        started: When the run began, UTC.
        counts: Objects by class name.
        outputs: Where they are.
    """

    job: DetectionJob
    definition: ModelDefinition
    crs: QgsCoordinateReferenceSystem
    extent: QgsRectangle
    cell_size: float
    output_crs: QgsCoordinateReferenceSystem
    told: Mapping[str, Any]
    items: Sequence[Mapping[str, Any]]
    versions: Mapping[str, str]
    started: datetime
    counts: Mapping[str, int]
    outputs: Sequence[Written]


def summary(story: RunStory) -> dict[str, Any]:
    """Give the summary; the module's text says what stands in it."""
    job, told, finished = story.job, story.told, datetime.now(timezone.utc)
    return {
        "kestrel_summary": _SCHEMA,
        "job_id": job.job_id,
        "kestrel_version": plugin_version(),
        "started": story.started.isoformat(timespec="seconds"),
        "finished": finished.isoformat(timespec="seconds"),
        "seconds": round((finished - story.started).total_seconds(), 3),
        "model": {
            "name": story.definition.name,
            "version": story.definition.version,
            "sha256": job.model_sha256,
            "license": story.definition.license,
        },
        "arguments": dict(job.arguments),
        "objects_of_interest": list(job.objects_of_interest),
        "rasters": [
            {"name": item.name, "kind": item.kind, "source": without_secrets(item.source)} for item in job.rasters
        ],
        "search": _search(story),
        "output_crs": _crs(story.output_crs),
        "device": told.get("device"),
        "versions": dict(story.versions),
        "tiling": {name: told.get(name) for name in _TILING},
        "accounting": _accounting(told),
        "items": list(story.items) or None,
        "camera": told.get("camera"),
        "geometry": told.get("geometry"),
        "objects": sum(story.counts.values()),
        "classes": dict(story.counts),
        "outputs": [{"kind": w.kind, "target": w.target, "count": w.count, **w.details} for w in story.outputs],
    }


def _search(story: RunStory) -> dict[str, Any]:
    job, box = story.job, story.extent
    extent = job.extent or (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
    return {
        "crs": _crs(story.crs),
        "extent": list(extent),
        "cell_size": job.cell_size or story.cell_size,
        "is_masked": job.mask_wkb is not None,
        "processing_mode": job.processing_mode,
    }


def _accounting(told: Mapping[str, Any]) -> dict[str, Any]:
    states = told.get("tiles_by_state")
    found = states if isinstance(states, Mapping) else {}
    return {"planned": told.get("tiles"), **{name: found.get(name) for name in _OUTCOMES}}


def _crs(crs: QgsCoordinateReferenceSystem) -> str | None:
    return (crs.authid() or crs.toWkt()) if crs.isValid() else None


def as_text(data: Mapping[str, Any]) -> str:
    """Give a summary as JSON text."""
    return json.dumps(data, ensure_ascii=False, indent=2, default=str)


def write_summary(path: Path, data: Mapping[str, Any]) -> None:
    """Write a summary to a file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=".kestrel-", suffix=".json", delete=False
        ) as stream:
            stream.write(as_text(data) + "\n")
        part = Path(stream.name)
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"The summary cannot be written to '{path}': {error.strerror or error}.",
            hint="The objects are written; what the summary says stands in the output SUMMARY, too.",
        ) from error
