"""The results: what the journal holds, merged, on the map, and handed out in files."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import Detections, of_dimension, shapes_of
from .errors import DiskFullError, OutputError
from .events import Canceled, Objects, Report
from .georeference import angles_of, boxes_to_map, rings_to_wkb, shapes_to_wkb
from .job import RasterItem
from .joining import join_fragments
from .journal import Journal
from .merge import Band, Found, Rule, join, rule_of, strongest_first, suppress
from .models.definition import ModelClass
from .object_file import MapObjects, foreign_class, write_objects
from .rasters.projection import Project, to_common
from .rasters.source import RasterInfo
from .reshaping import reshaped
from .run import SEAM_TOLERANCE, Run

_MOST_SEAM_OVERLAP = 0.5
ANGLE = "Angle"
"""The attribute that holds the direction of a turned rectangle, see `angles_of`."""
SOURCE = "Source"
"""The attribute that tells which of several rasters an object was found in, where they are searched one by one."""
_OBJECTS_PER_FILE = 5000


def hand_out(
    run: Run, journal: Journal, paths: Iterator[Path], report: Report, is_cancelled: Callable[[], bool]
) -> dict[str, int]:
    """Merge what the journal holds, and write finished objects for QGIS.

    Args:
        run: The run.
        journal: What it found.
        paths: Gives the files to write, one after the other.
        report: Told of each file.
        is_cancelled: Asked often.

    Returns:
        The number of objects of each class.
    """
    classes = run.package.definition.classes
    counts = Counter(dict.fromkeys((item.name for item in classes), 0))
    project = to_common(run.source.info, run.job.crs_wkt)
    for found in _in_portions(merged(run, journal)):
        if is_cancelled():
            raise Canceled
        path, objects = next(paths), _to_map(run, found, project)
        _write(path, objects)
        report(Objects(str(path), len(found)))
        counts.update(_class_name(objects, index, classes) for index in range(len(objects)))
    return dict(counts)


def _class_name(objects: MapObjects, index: int, classes: Sequence[ModelClass]) -> str:
    known = classes[objects.labels[index]]
    return objects.foreign_class(index, known.name, known.value) or known.name


def merged(run: Run, journal: Journal) -> Iterator[Found]:
    """Give finished objects, each once, in an order that depends on nothing but the objects."""
    bands, rule = bands_of(run, journal), rule_of(run.arguments)
    if run.detector.traits.is_joined:
        bands = _joined(run, bands)
    if run.detector.traits.is_dense:
        bands = suppress(bands, rule)
    else:
        bands = suppress(bands, Rule(min(rule.max_overlap, _MOST_SEAM_OVERLAP), across_tiles_only=True))
        # The network has done the usual inside itself.
        bands = bands if rule.is_usual else suppress(_all_open(bands), rule)
    bands = _inside(bands, run.source.info)
    if run.job.run_nms:
        bands = suppress(_all_open(bands), replace(rule, max_overlap=run.job.max_overlap_ratio, method="nms"))
    for band in bands:
        yield band.found.take(strongest_first(band.found))


def bands_of(run: Run, journal: Journal) -> Iterator[Band]:
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


def _joined(run: Run, bands: Iterator[Band]) -> Iterator[Band]:
    drops_cut = bool(run.arguments["exclude_pad_detections"])
    for band in join_fragments(bands, run.plan.grid, SEAM_TOLERANCE, drops_cut=drops_cut):
        yield Band(band.found.take(run.region.contains(band.found.detections.anchors)), band.frontier)


def _wanted_labels(run: Run) -> np.ndarray[Any, np.dtype[np.intp]]:
    wanted = run.job.objects_of_interest
    classes = run.package.definition.classes
    return np.array([i for i, item in enumerate(classes) if not wanted or item.name in wanted], np.intp)


def _is_wanted(run: Run, detections: Detections, wanted: np.ndarray[Any, Any]) -> NDArray[np.bool_]:
    is_wanted: NDArray[np.bool_] = np.isin(detections.labels, wanted)
    if run.job.objects_of_interest and detections.attributes is not None:
        # Classes that only the model's program knows cannot have been asked for.
        classes = [run.package.definition.classes[label] for label in detections.labels]
        known = [foreign_class(told, c.name, c.value) is None for told, c in zip(detections.attributes, classes)]
        is_wanted &= np.array(known, np.bool_)
    return is_wanted


def _as_found(run: Run, number: int, detections: Detections, wanted: np.ndarray[Any, Any]) -> Found:
    grid, tile = run.plan.grid, run.plan.grid[number]
    keep, traits = _is_wanted(run, detections, wanted), run.detector.traits
    if not traits.is_joined:
        # Before anything is suppressed: which tiles happened to be run around the polygons must not matter.
        keep &= run.region.contains(detections.anchors)
    chosen = detections.take(keep)
    if traits.is_oriented:
        chosen = _with_angles(chosen, run.source.info)
    n = len(chosen)
    if traits.is_dense or traits.is_joined:
        rank, is_open = np.zeros(n, np.int8), np.ones(n, np.bool_)
    else:
        rank = (~grid.owns(tile, chosen.anchors)).astype(np.int8)
        is_open = grid.seam_distance(tile, chosen.anchors) <= 2 * SEAM_TOLERANCE
    return Found(chosen, np.full(n, number, np.int64), rank, is_open)


def _with_angles(found: Detections, info: RasterInfo) -> Detections:
    """Note the directions of turned rectangles, as long as they are some: the raster's edge may cut a corner off."""
    angles = angles_of(shapes_of(found), info.transform).tolist()
    attributes = np.empty(len(found), np.object_)
    for index, angle in enumerate(angles):
        attributes[index] = {**({} if found.attributes is None else found.attributes[index]), ANGLE: angle}
    return replace(found, attributes=attributes)


def _inside(bands: Iterator[Band], info: RasterInfo) -> Iterator[Band]:
    """Cut objects at the edge of the raster: a crown may lean out of the image, what is drawn ends with it."""
    for band in bands:
        yield Band(_cut_boxes(band.found, info) if band.found.detections.shapes is None else
                   _cut_shapes(band.found, info), band.frontier)  # fmt: skip


def _cut_boxes(found: Found, info: RasterInfo) -> Found:
    boxes = np.clip(found.detections.boxes, 0, np.array([info.width, info.height] * 2))
    cut = replace(found, detections=replace(found.detections, boxes=boxes))
    has_area: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    return cut.take(has_area)


def _cut_shapes(found: Found, info: RasterInfo) -> Found:
    detections, limits = found.detections, np.array([info.width, info.height])
    shapes = np.array(detections.shapes, np.object_)
    hangs_over = np.flatnonzero(np.any((detections.boxes[:, :2] < 0) | (detections.boxes[:, 2:] > limits), axis=1))
    inside = shapely.intersection(shapes[hangs_over], shapely.box(0, 0, info.width, info.height))
    for index, shape in zip(hangs_over, inside):
        shapes[index] = of_dimension(shape, shapely.get_dimensions(shapes[index]))
    cut = replace(detections, shapes=shapes, boxes=np.clip(detections.boxes, 0, np.tile(limits, 2)))
    return replace(found, detections=cut).take(~shapely.is_empty(shapes))


def _all_open(bands: Iterator[Band]) -> Iterator[Band]:
    for band in bands:
        found = band.found
        ones = np.ones(len(found), np.bool_)
        yield Band(replace(found, rank=np.zeros_like(found.rank), is_open=ones), band.frontier)


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


def _to_map(run: Run, found: Found, project: Project | None) -> MapObjects:
    d = reshaped(found.detections, run.detector.traits.geometry, run.arguments)
    transform = run.source.info.transform
    if d.shapes is None:
        rings = boxes_to_map(d.boxes, transform)
        wkb = rings_to_wkb(rings if project is None else project(rings))
    else:
        wkb = shapes_to_wkb(d.shapes, transform, project)
    attributes = None if d.attributes is None else list(d.attributes)
    if run.job.processing_mode == "items":
        source = _source_of(run.job.rasters[0])
        attributes = [{**own, SOURCE: source} for own in attributes or [{}] * len(found)]
    return MapObjects(wkb, d.scores, d.labels, found.tiles, _is_cut(run, found), attributes)


def _source_of(item: RasterItem) -> str:
    """Give what the field Source says: a path, an address, or the address of one raster of a mosaic.

    Source: ArcGIS REST API, "Raster catalog item": <service>/<id>.
    """
    rule = item.options.get("mosaicRule")
    numbers = rule.get("lockRasterIds") if isinstance(rule, dict) else None
    return f"{item.address}/{numbers[0]}" if isinstance(numbers, list) and len(numbers) == 1 else item.address


def _is_cut(run: Run, found: Found) -> NDArray[np.bool_]:
    """Tell which objects may go on where nobody could see them: at the raster's edge, or behind their tile's view."""
    boxes, info, grid = found.detections.boxes, run.source.info, run.plan.grid
    limits = np.array([info.width, info.height])
    is_cut: NDArray[np.bool_] = np.any((boxes[:, :2] <= 0) | (boxes[:, 2:] >= limits), axis=1)
    if run.detector.traits.is_dense:
        return is_cut  # its boxes do not end with the tile
    if found.is_cut is not None:
        return is_cut | found.is_cut
    for number in np.unique(found.tiles):
        of_tile = found.tiles == number
        is_cut[of_tile] |= grid.reaches_end_of_view(grid[int(number)], boxes[of_tile])
    return is_cut


def _write(path: Path, objects: MapObjects) -> None:
    try:
        write_objects(path, objects)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(f"The disk of {path.parent} is full.", hint="Make room, then start again.") from error
        raise OutputError(f"The file {path} cannot be written: {error.strerror or error}.") from error
