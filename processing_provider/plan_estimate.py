"""What a run will have to do, as far as it can be told at once: from the definition, before any network is loaded.

The worker's own plan (inference/outlook.py) is exact; `plan_run` asks it, with a trial tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qgis.core import QgsCoordinateTransform, QgsCsException, QgsProcessingFeedback, QgsRectangle

from ..inference.errors import InferenceError
from ..inference.events import WasCanceled
from ..inference.models.arguments import parse_arguments, resolve_arguments
from ..inference.models.fit_rules import resolution
from ..inference.models.package import ModelPackage
from . import parameters as keys
from .cell_size import ground_at, wanted_cell_size
from .feedback import EventListener, duration_text
from .inputs import InputRasters
from .job_builder import DetectionPlan, complete_job
from .job_run import start_run
from .parameter_reader import ParameterReader
from .picture_plan import settle_picture
from .pixel_server import PixelServer, PixelSource
from .raster_source import SourceRaster
from .search_extent import search_extent
from .text import tr

_LIBRARIES = 500_000_000
"""Bytes of a worker that has loaded its libraries and no model."""
_TILES_IN_MEMORY = 8
_BYTES_A_VALUE = 4


@dataclass(frozen=True)
class PlanEstimate:
    """A run before it starts, roughly.

    Units/space: width and height in pixels of the searched area as the model sees them; ground in metres; memory in
    bytes.
    """

    width: int
    height: int
    ground: float | None
    tiles: int
    tile_size: int
    memory: int
    most_tiles: int | None
    has_mask: bool
    n_rasters: int = 1
    """How many are searched one by one; width and height are the first one's."""
    largest: int = 0
    """Tiles of the largest of these: the limit is for each; 0: there is one raster."""

    @property
    def is_too_large(self) -> bool:
        """Tell whether the run will most likely be refused."""
        return self.most_tiles is not None and (self.largest or self.tiles) > self.most_tiles and not self.has_mask


def estimate(reader: ParameterReader, raster: SourceRaster, package: ModelPackage) -> PlanEstimate:
    """Tell what a run with these parameters has to do.

    Raises:
        InferenceError: the parameters cannot work.
    """
    definition = package.definition
    arguments = resolve_arguments(definition, parse_arguments(reader.text(keys.ARGUMENTS))).values
    extent, _ = search_extent(reader, raster)
    area = raster.extent if extent is None else QgsRectangle(*extent)
    side, mask = wanted_cell_size(reader, raster, area), _mask_extent(reader, raster)
    if raster.by_qgis is not None:
        searched = None if extent is None and mask is None else area if mask is None else area.intersect(mask)
        raster, _ = settle_picture(raster, raster.by_qgis, definition, side, searched)
        side = raster.cell_size
    place = None if raster.is_picture else ground_at(raster.crs, area.center(), raster.cell_size)
    if side is None:
        wanted = resolution(definition.cell_size, place[0], raster.cell_size) if place else None
        side = wanted.cell_size if wanted else raster.cell_size
    if mask is not None:
        area = area.intersect(mask)
    width, height = (max(1, round(length / side)) for length in (area.width(), area.height()))
    tile = int(arguments.get("tile_size") or definition.tile.size)
    padding = _padding(arguments, definition.tile.padding, tile)
    tiles = math.prod(_tiles_along(length, tile, padding) for length in (width, height))
    most = reader.number(keys.MAX_TILES)
    return PlanEstimate(
        width, height, place[0] * side / raster.cell_size if place else None, tiles, tile,
        _memory(reader, arguments, len(definition.input.bands), tile), None if most is None else int(most),
        mask is not None,
    )  # fmt: skip


def estimate_all(reader: ParameterReader, inputs: InputRasters, package: ModelPackage) -> PlanEstimate:
    """Tell the same of all rasters: of the mosaic that they are, or of all in turn.

    Raises:
        InferenceError: the parameters cannot work, for none of the rasters.
    """
    if not inputs.is_separate:
        return estimate(reader, inputs.whole, package)
    found = [_estimate_or_error(reader, raster, package) for raster in inputs.rasters]
    plans = [plan for plan in found if isinstance(plan, PlanEstimate)]
    errors = [error for error in found if isinstance(error, InferenceError)]
    if not plans:
        raise errors[0]
    tiles = [plan.tiles for plan in plans]
    return replace(plans[0], tiles=sum(tiles), n_rasters=len(plans), largest=max(tiles))


def _estimate_or_error(
    reader: ParameterReader, raster: SourceRaster, package: ModelPackage
) -> PlanEstimate | InferenceError:
    try:
        return estimate(reader, raster, package)
    except InferenceError as error:
        return error  # the run passes over a raster that the extent does not meet


def _padding(arguments: Mapping[str, Any], stated: int | None, tile: int) -> int:
    wanted = arguments.get("padding")
    if wanted is None:
        wanted = stated if stated is not None else tile // 4
    return min(int(wanted), (tile - 1) // 2)


def _tiles_along(length: int, tile: int, padding: int) -> int:
    return 1 + max(0, math.ceil((length - tile) / (tile - 2 * padding)))


def _memory(reader: ParameterReader, arguments: Mapping[str, Any], n_bands: int, tile: int) -> int:
    n_tiles = int(arguments.get("batch_size") or 1) + _TILES_IN_MEMORY
    return _LIBRARIES + _weights_size(reader.text(keys.MODEL)) + n_tiles * tile * tile * n_bands * _BYTES_A_VALUE


def _weights_size(model: str) -> int:
    """Give the size of the model's file as a measure of its weights; 0 where it is not one file."""
    try:
        path = Path(model)
        return 2 * path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        return 0


def _mask_extent(reader: ParameterReader, raster: SourceRaster) -> QgsRectangle | None:
    """Give the rectangle around the mask; None where there is no mask, or none that can be read."""
    if not reader.is_given(keys.MASK):
        return None
    source = reader.algorithm.parameterAsSource(reader.parameters, keys.MASK, reader.context)
    if source is None:
        return None
    transform = QgsCoordinateTransform(source.sourceCrs(), raster.crs, reader.context.transformContext())
    try:
        return transform.transformBoundingBox(source.sourceExtent())
    except QgsCsException:
        return None  # the run says so


def estimate_text(plan: PlanEstimate) -> str:
    """Say in words what a run has to do."""
    ground = tr(" of {size} m on the ground").format(size=f"{plan.ground:.3g}") if plan.ground else ""
    text = tr("{width} x {height} pixels{ground}, {at_most} {tiles} of {size} pixels, roughly {memory} of memory.")
    tiles = tr("1 tile") if plan.tiles == 1 else tr("{count} tiles").format(count=plan.tiles)
    if plan.n_rasters > 1:
        text = tr("{count} rasters one by one, the first with ").format(count=plan.n_rasters) + text
    told = text.format(
        width=plan.width, height=plan.height, ground=ground, tiles=tiles, size=plan.tile_size,
        at_most=tr("at most about") if plan.has_mask else tr("about"), memory=size_text(plan.memory),
    )  # fmt: skip
    if not plan.is_too_large:
        return told
    return (
        told
        + " "
        + tr(
            "That is more than the maximum number of tiles ({most}): the run would be refused. Choose an extent, a "
            "mask or a larger cell size, or raise it."
        ).format(most=plan.most_tiles)
    )


def plan_run(
    plan: DetectionPlan, sources: Mapping[str, PixelSource], feedback: QgsProcessingFeedback
) -> dict[str, Any] | None:
    """Have the worker plan a run and try a tile, in any thread; None: it was cancelled.

    Args:
        plan: A plan whose job has `plan_only`.
        sources: What reads the rasters that only QGIS can read, see `inputs.take_sources`.
        feedback: Asked whether to stop.

    Raises:
        InferenceError: the run would not work.
    """
    run = start_run(complete_job(plan))
    try:
        with PixelServer(sources, feedback) as pixels:
            outcome = run.execute(plan.interpreter, EventListener(feedback), feedback, pixels, plan.secrets)
    finally:
        run.release()
        run.remove()
    return None if isinstance(outcome, WasCanceled) else outcome.summary


def planned_text(summary: Mapping[str, Any]) -> str:
    """Say in words what the worker's plan is."""
    plan = summary.get("plan") or {}
    tiles, seconds, memory = plan.get("tiles"), plan.get("seconds"), plan.get("memory") or plan.get("pixel_memory")
    parts = [tr("1 tile") if tiles == 1 else tr("{tiles} tiles").format(tiles=tiles)]
    if plan.get("outside"):
        parts.append(tr("{count} more outside the searched area").format(count=plan["outside"]))
    parts.append(
        tr("no tile with data was found to measure the time")
        if seconds is None
        else tr("about {time}").format(time=duration_text(max(1.0, float(seconds))))
    )
    if memory:
        parts.append(tr("about {size} of memory").format(size=size_text(memory)))
    return tr("A trial on {device}: {parts}.").format(device=summary.get("device", ""), parts=", ".join(parts))


def size_text(size: float) -> str:
    """Give a number of bytes as people say it."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
