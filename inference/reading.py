"""How a raster is read for a model: at which resolution, and with which stretch of its values.

Both are settled once a run from the raster as a whole, so that a part of it gives the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RasterOpenError
from .events import Message
from .fit import ground_cell
from .georeference import to_map
from .job import DetectionJob
from .models.definition import ModelDefinition
from .models.fit_rules import AS_BYTES, chosen_stretch, depends_on_values, resolution, stretch_text
from .rasters.access import ALONE, RasterAccess
from .rasters.model_raster import ModelRaster
from .rasters.mosaic import MosaicPixels
from .rasters.opening import open_mosaic, open_pixels
from .rasters.projection import from_common, to_common
from .rasters.source import GridRequest, PixelSource, RasterInfo
from .rasters.stretching import BandStretch, measured
from .rasters.upright import UprightPixels

_TOLD_BANDS = 6


def open_raster(
    job: DetectionJob,
    definition: ModelDefinition,
    arguments: Mapping[str, Any],
    access: RasterAccess = ALONE,
) -> tuple[ModelRaster, list[Message]]:
    """Open a job's raster as its model wants to see it.

    Args:
        job: The job.
        definition: The model.
        arguments: Resolved arguments.
        access: What reading the raster needs besides its name.

    Returns:
        The raster, and what the user should hear about it.

    Raises:
        RasterOpenError: it cannot be opened, or has no usable georeference.
        RasterReadError: its values cannot be looked at.
        ModelIncompatibleError: it lacks bands that the model needs, or its type cannot be used.
    """
    bands = job.bands or definition.input.bands
    grid = GridRequest(job.cell_size, job.snap, job.resampling)
    if job.crs_wkt and (grid.cell_size or grid.snap):
        own = open_pixels(job.rasters[0], bands, GridRequest(is_look=True), access)
        own.close()
        grid = _of_raster(grid, own.info, job.crs_wkt)
    pixels = open_mosaic(job.rasters, bands, grid, access)
    told = list[Message]()
    if job.cell_size is None:
        cell_size, told = _wanted_cell_size(pixels.info, definition)
        if cell_size is not None:
            pixels.close()
            pixels = open_mosaic(job.rasters, bands, replace(grid, cell_size=cell_size), access)
    if isinstance(pixels, MosaicPixels):
        told = [Message("info", "mosaic", _mosaic_text(pixels)), *told]
    if not pixels.info.crs_wkt:
        told = [Message("info", "pixel-space", _picture_text(pixels)), *told]
    _check_place(pixels, job.crs_wkt)
    stretch, message = _stretch(pixels, definition, str(arguments.get("stretch", "model")))
    return ModelRaster(pixels, definition.input, stretch), told + ([message] if message else [])


def _of_raster(grid: GridRequest, info: RasterInfo, crs_wkt: str) -> GridRequest:
    """Bring cell size and snap point to a raster's own coordinate reference system, where another one is shared."""
    there, back = to_common(info, crs_wkt), from_common(info, crs_wkt)
    if there is None or back is None:
        return grid
    snap = None if grid.snap is None else tuple(back(np.array(grid.snap)).tolist())
    cell_size = grid.cell_size
    if cell_size is not None:
        centre = there(to_map(np.array([info.width / 2, info.height / 2]), info.transform))
        corners = back(centre + cell_size * np.array([[0, 0], [1, 0], [0, 1]]))
        (a, b), (c, d) = (corners[1:] - corners[0]).tolist()
        cell_size = math.sqrt(abs(a * d - b * c))  # a square of the same ground
    return replace(grid, cell_size=cell_size, snap=snap)


def _mosaic_text(mosaic: MosaicPixels) -> str:
    info = mosaic.info
    text = f"{mosaic.n_items} rasters are searched as one mosaic of {info.width} x {info.height} pixels"
    if mosaic.n_resampled:
        text += f"; {mosaic.n_resampled} of them are resampled to the grid of the first one"
    return f"{text}. A later one lies on top."


def _check_place(pixels: PixelSource, crs_wkt: str) -> None:
    """Make sure that objects can be given in the coordinate reference system of the job."""
    try:
        to_common(pixels.info, crs_wkt)
    except RasterOpenError as error:
        pixels.close()
        raise RasterOpenError(f"The raster '{pixels.name}' {error.message}", hint=error.hint) from error


def _picture_text(picture: PixelSource) -> str:
    text = (
        f"'{picture.name}' has no georeference: its objects lie where QGIS shows such a picture, in pixels, with x to "
        "the right and y up from its upper left corner, so that y is below zero."
    )
    if isinstance(picture, UprightPixels):
        text += " It is stored turned or mirrored (EXIF orientation): the model sees it upright."
    return text


def _wanted_cell_size(info: RasterInfo, definition: ModelDefinition) -> tuple[float | None, list[Message]]:
    """Give the cell size for a model that sees all rasters at one resolution; None: the raster's own pixels."""
    if definition.cell_size is None or definition.cell_size.read_at is None:
        return None, []
    place = ground_cell(info)
    if place is None:
        text = (
            f"The model wants pixels of {definition.cell_size.read_at:g} m on the ground, and where the raster lies is "
            "not known: it is read with its own pixels. CELL_SIZE overrules it."
        )
        return None, [Message("warning", "resolution", text)]
    wanted = resolution(definition.cell_size, place[0], info.cell_size[0])
    if wanted is None:
        return None, []
    return wanted.cell_size, [Message("warning" if wanted.is_enlarged else "info", "resolution", wanted.text)]


def _stretch(
    source: PixelSource, definition: ModelDefinition, argument: str
) -> tuple[BandStretch | None, Message | None]:
    dtype = source.info.dtype
    chosen = chosen_stretch(definition, argument, dtype, None)
    is_assumed = chosen is None and depends_on_values(definition, argument, dtype)
    if source.has_palette or (chosen is None and not is_assumed):
        return None, None
    samples = [np.empty(0)] * len(source.bands)
    if chosen is None or chosen.source != "range":
        samples = source.sample()
        chosen = chosen or chosen_stretch(definition, argument, dtype, _extremes(samples))
    if chosen is None:
        return None, None
    stretch = measured(chosen, samples)
    if chosen == AS_BYTES:
        return stretch, None
    text = (
        f"The raster's values were stretched to {stretch.to[0]:g} to {stretch.to[1]:g} ({stretch_text(chosen)}): "
        f"{_ends(stretch, source.bands)}. Overrule it with the model argument stretch."
    )
    if is_assumed:
        text = f"The model was made for values of 8 bits, and the raster holds others. {text}"
    return stretch, Message("warning" if is_assumed else "info", "stretch", text)


def _extremes(samples: Sequence[NDArray[Any]]) -> tuple[float, float] | None:
    found = [values for values in samples if len(values)]
    if not found:
        return None
    return min(float(values.min()) for values in found), max(float(values.max()) for values in found)


def _ends(stretch: BandStretch, bands: Sequence[int]) -> str:
    ends = list(zip(bands, stretch.lows, stretch.highs))
    shown = [f"band {band} from {low:.6g} to {high:.6g}" for band, low, high in ends[:_TOLD_BANDS]]
    rest = len(ends) - len(shown)
    return ", ".join(shown) + (f", and {rest} more" if rest else "")
