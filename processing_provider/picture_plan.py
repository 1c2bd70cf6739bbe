"""At which resolution a layer that QGIS reads is searched: what the user says, else what suits the model."""

from __future__ import annotations

import math
from dataclasses import replace

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsProcessingFeatureSource,
    QgsRectangle,
)

from ..inference.errors import JobError
from ..inference.models.definition import ModelDefinition
from ..inference.models.fit_rules import range_in_metres
from .cell_size import ground_at
from .fit_check import unit_of
from .inputs import InputRasters
from .picture_source import MOST_PIXELS, PictureFacts, nearest, settled, tile_count
from .raster_source import SourceRaster
from .text import tr
from .tile_matrix import web_zoom

_NEAR = 0.05
"""Share by which a source's own pixels may differ from what the model wants and are taken as they are."""
_SAME = 0.01
"""Share by which a cell size may differ from the one that was asked for without a word."""


def settle_pictures(
    inputs: InputRasters,
    definition: ModelDefinition,
    cell_size: float | None,
    area: QgsRectangle | None,
    transforms: QgsCoordinateTransformContext,
) -> tuple[InputRasters, tuple[str, ...]]:
    """Settle the grids of all pictures among the rasters of a run, and say what they are.

    Args:
        inputs: The rasters.
        definition: The model.
        cell_size: What the user says, in the units of the first one.
        area: What is searched, in the coordinate reference system of the first one; None: all of it.
        transforms: How coordinates are converted.

    Raises:
        JobError: see `settle_picture`.
    """
    rasters, texts = [], []
    for raster in inputs.rasters:
        done = raster
        if raster.by_qgis is not None:
            is_same = raster.crs == inputs.whole.crs
            there = area if area is None or is_same else _moved(area, inputs.whole.crs, raster, transforms)
            done, text = settle_picture(raster, raster.by_qgis, definition, cell_size if is_same else None, there)
            texts.append(text)
        rasters.append(done)
    whole = replace(inputs.whole, by_qgis=rasters[0].by_qgis, cell_size=rasters[0].cell_size)
    return replace(inputs, rasters=tuple(rasters), whole=whole), tuple(texts)


def searched_area(
    raster: SourceRaster,
    extent: tuple[float, float, float, float] | None,
    mask: QgsProcessingFeatureSource | None,
    transforms: QgsCoordinateTransformContext,
) -> QgsRectangle | None:
    """Give a rectangle around what is searched, in the raster's coordinate reference system; None: all of it.

    Raises:
        JobError: nothing is.
    """
    area = None if extent is None else QgsRectangle(*extent)
    if mask is not None:
        around = _moved(mask.sourceExtent(), mask.sourceCrs(), raster, transforms)
        area = around if area is None else area.intersect(around)
    if area is not None and not (area.intersects(raster.extent) and area.width() > 0 and area.height() > 0):
        raise JobError(
            f"The mask lies outside the raster '{raster.name}', or outside the extent.",
            hint="Check the coordinate reference systems of the layers.",
        )
    return area


def _moved(
    area: QgsRectangle,
    crs: QgsCoordinateReferenceSystem,
    raster: SourceRaster,
    transforms: QgsCoordinateTransformContext,
) -> QgsRectangle:
    try:
        return QgsCoordinateTransform(crs, raster.crs, transforms).transformBoundingBox(area)
    except QgsCsException as error:
        raise JobError(f"What is searched cannot be brought to the place of '{raster.name}': {error}.") from error


def settle_picture(
    raster: SourceRaster,
    facts: PictureFacts,
    definition: ModelDefinition,
    cell_size: float | None,
    area: QgsRectangle | None,
) -> tuple[SourceRaster, str]:
    """Settle the grid of pixels, and say what it is.

    Args:
        raster: The raster.
        facts: What is special about it.
        definition: The model.
        cell_size: What the user says, in the raster's units.
        area: What is searched, in the raster's coordinate reference system; None: all of it.

    Raises:
        JobError: nothing says at which resolution, or the whole of the layer is too much.
    """
    searched = raster.extent if area is None else area
    ground = ground_at(raster.crs, searched.center(), searched.width() * 1e-6)
    metres = None if ground is None else ground[0] / (searched.width() * 1e-6)
    latitude = 0.0 if ground is None else ground[1]
    side = _chosen(facts, cell_size, _model_side(definition, facts, metres, latitude))
    if side is None:
        raise JobError(
            f"The layer '{raster.name}' has no pixels of its own, and the model does not say which size it wants.",
            hint="Set CELL_SIZE to the size of pixels that the model was trained on.",
        )
    if area is None:
        _check_whole(raster, facts, side)
    done = settled(facts, raster.name, side, searched)
    place = "" if metres is None else tr(", {size:.3g} m on the ground").format(size=side * metres)
    zoom = web_zoom(side, raster.crs) if facts.is_tiled else None
    how = tr("at zoom {zoom}").format(zoom=zoom) if zoom is not None else tr("with a cell size of {side:g}").format(
        side=side)  # fmt: skip
    does = tr("QGIS draws '{name}' {how}{place}.") if facts.is_drawn else tr("QGIS reads '{name}' {how}{place}.")
    text = does.format(name=raster.name, how=how, place=place)
    if cell_size and abs(side / cell_size - 1) > _SAME:
        text += " " + tr("That is the nearest that it has to the cell size of {wanted:g}.").format(wanted=cell_size)
    return replace(raster, by_qgis=done, cell_size=side), text


def _model_side(
    definition: ModelDefinition, facts: PictureFacts, metres: float | None, latitude: float
) -> float | None:
    """Give the side of the pixels that a model wants, in the raster's units; None: it does not say, or they suit.

    Args:
        definition: The model.
        facts: The raster.
        metres: Length of the raster's unit on the ground.
        latitude: Of what is searched.
    """
    wanted, unit = definition.cell_size, unit_of(definition.cell_size)
    if wanted is None or metres is None:
        return None
    if wanted.read_at is not None:
        return wanted.read_at / metres
    if unit is None or (len(facts.resolutions) == 1 and not facts.is_tiled):
        return None  # a raster with pixels of its own: the worker says where they do not suit
    low, high = range_in_metres(wanted, unit, latitude)
    return math.sqrt(low * high) / metres


def _chosen(facts: PictureFacts, asked: float | None, by_model: float | None) -> float | None:
    """Choose among what the user asks for, what the model wants, and what the source has."""
    wanted = asked or by_model
    if not facts.resolutions or not wanted:
        return wanted or (facts.resolutions[0] if facts.resolutions else None)
    own = nearest(facts.resolutions, wanted)
    has_choice = asked is None and len(facts.resolutions) > 1
    is_near = asked is None and abs(own / wanted - 1) <= _NEAR
    return own if facts.is_tiled or has_choice or is_near else wanted


def _check_whole(raster: SourceRaster, facts: PictureFacts, side: float) -> None:
    n_pixels = raster.extent.width() / side * raster.extent.height() / side
    if n_pixels <= MOST_PIXELS:
        return
    n_tiles = tile_count(facts, side, raster.extent)
    raise JobError(
        f"The layer '{raster.name}' is too large to be searched whole: with a cell size of {side:g} that is "
        f"{n_tiles:,.0f} tiles of 256 pixels.",
        hint="Set EXTENT or MASK to the part that is to be searched.",
    )
