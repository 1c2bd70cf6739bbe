"""INPUT, MORE_INPUTS and INPUT_SOURCE -> the rasters of a run, whatever form they were given in.

`input_list` reads the parameters and looks at nothing but names: it is quick. `opened` looks at the rasters; many of
them, or one on a server, take time, and that is for the run's own thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union, cast

from qgis.core import (
    QgsCoordinateReferenceSystem,
    QgsCoordinateTransform,
    QgsCoordinateTransformContext,
    QgsCsException,
    QgsMapLayer,
    QgsProcessingUtils,
    QgsRasterLayer,
    QgsRectangle,
    QgsVariantUtils,
)

from ..inference.errors import (
    CredentialError,
    InferenceError,
    JobError,
    ModelIncompatibleError,
    RasterOpenError,
    ServiceError,
)
from ..inference.events import Canceled
from ..inference.job import RasterItem
from ..inference.models.definition import ModelDefinition
from ..inference.net.http import HttpClient
from ..inference.net.item_files import Progress
from . import parameters as keys
from .drawn_source import drawn_raster, is_drawn, layers_to_draw, take_drawn
from .input_text import is_remote, sources_in
from .parameter_reader import ParameterReader
from .picture_source import reference_of, take_source
from .pixel_server import PixelSource
from .raster_source import SourceRaster, check_bands, file_raster, source_raster
from .server_source import ServerSource, described, items_of, service_layer
from .text import file_name

_QUICK = 24
"""Rasters that are looked at while the dialog waits."""

Source = Union[SourceRaster, str, ServerSource]
"""A raster that was looked at, GDAL's name of one, or one that a server has to be asked for."""

Told = Callable[[int, int], bool]


def always(done: int, total: int) -> bool:
    """Go on."""
    return True


@dataclass(frozen=True)
class InputList:
    """What the parameters name.

    Attributes:
        sources: The rasters in order.
        is_separate: They are searched one by one.
        repeated: Names of rasters that were given again and are searched once.
    """

    sources: tuple[Source, ...]
    is_separate: bool
    repeated: tuple[str, ...] = ()

    @property
    def items(self) -> tuple[RasterItem, ...]:
        """Give them as the job names them, as far as they are known."""
        return tuple(_item_of(source) for source in self.sources)

    @property
    def is_quick(self) -> bool:
        """Tell whether all can be looked at without anybody having to wait."""
        names = [source for source in self.sources if isinstance(source, str)]
        return len(names) <= _QUICK and not any(is_remote(name) for name in names) and not self.servers

    @property
    def servers(self) -> tuple[ServerSource, ...]:
        """Give those that a server has to be asked for."""
        return tuple(source for source in self.sources if isinstance(source, ServerSource))


@dataclass(frozen=True)
class InputRasters:
    """The rasters of a run.

    Attributes:
        rasters: Those that QGIS could look at; never empty.
        unseen: Items that it could not, and that the worker names in its messages.
        is_separate: They are searched one by one.
        whole: What stands for all: the first one, with the extent of all where they are one mosaic or are searched in
            turn.
    """

    rasters: tuple[SourceRaster, ...]
    unseen: tuple[RasterItem, ...]
    is_separate: bool
    whole: SourceRaster
    owners: Mapping[str, str] = field(default_factory=dict)
    """Address of a service -> the portal whose item it is."""

    @property
    def any_by_qgis(self) -> bool:
        """Tell whether QGIS reads or draws one of them for the worker."""
        return any(raster.by_qgis is not None for raster in self.rasters)

    @property
    def items(self) -> tuple[RasterItem, ...]:
        """Give them as the job names them."""
        return (*(raster.item for raster in self.rasters), *self.unseen)


def input_list(reader: ParameterReader) -> InputList:
    """Read the parameters.

    Raises:
        JobError: they name no raster, or cannot be understood.
        RasterOpenError: a layer is of a kind that Kestrel does not read.
    """
    sources: list[Source] = []
    if reader.is_given(keys.INPUT_SOURCE):
        sources += sources_in(reader.text(keys.INPUT_SOURCE), reader.text(keys.PORTAL))
    elif is_drawn(reader):
        sources.append(drawn_raster(*layers_to_draw(reader), reader.context.transformContext()))
    elif reader.is_given(keys.INPUT):
        sources.append(_of_layer(reader.raster_layer(keys.INPUT)))
    sources += [_of_layer(layer) for layer in _more(reader)]
    if not sources:
        raise JobError(
            "No raster is given.",
            hint="Choose an input raster, or several, or write an address or a folder as input source.",
        )
    if reader.choice(keys.PROCESSING_MODE) != keys.PROCESSING_MODES[1]:
        return InputList(tuple(sources), is_separate=False)
    return _each_once(sources)


def _each_once(sources: Sequence[Source]) -> InputList:
    """Give rasters to be searched one by one: in a list of all layers the input raster stands again."""
    kept: list[Source] = []
    known: set[str] = set()
    repeated: list[str] = []
    for source in sources:
        item = _item_of(source)
        key = repr(replace(item, name=""))
        if key in known:
            repeated.append(item.name)
            continue
        known.add(key)
        kept.append(source)
    return InputList(tuple(kept), is_separate=True, repeated=tuple(repeated))


def _item_of(source: Source) -> RasterItem:
    return named_item(source) if isinstance(source, str) else source.item


def take_sources(reader: ParameterReader, inputs: InputList) -> dict[str, PixelSource]:
    """Take from the layers what reads their pixels during the run; in the thread that the layers belong to.

    Returns:
        `RasterItem.source` -> what reads it, for those that only QGIS can read.
    """
    found = [source for source in inputs.sources if isinstance(source, SourceRaster)]
    pictures = {raster.by_qgis.reference: raster for raster in found if raster.by_qgis is not None}
    taken: dict[str, PixelSource] = {}
    for reference, raster in pictures.items():
        if raster.by_qgis is not None and raster.by_qgis.is_drawn:
            first, layers = layers_to_draw(reader)
            drawn = layers or [layer for layer in (first,) if layer is not None]
            taken[reference] = take_drawn(raster, drawn, reader.context.transformContext())
    if len(taken) < len(pictures):
        own = [reader.raster_layer(keys.INPUT)] if reader.is_given(keys.INPUT) else []
        for layer in (*own, *_more(reader)):
            of_layer = pictures.get(reference_of(layer.providerType(), layer.source()))
            if of_layer is not None and of_layer.by_qgis is not None:
                taken[of_layer.by_qgis.reference] = take_source(layer, of_layer.by_qgis)
    return taken


def _more(reader: ParameterReader) -> Iterator[QgsRasterLayer]:
    """Give the layers of MORE_INPUTS; QGIS's own way passes over what it cannot find."""
    value = reader.parameters.get(keys.MORE_INPUTS)
    if QgsVariantUtils.isNull(value) or value == "":
        return
    for part in value if isinstance(value, (list, tuple)) else _split(reader, value):
        if isinstance(part, os.PathLike):
            part = os.fsdecode(part)
        layer = part if isinstance(part, QgsMapLayer) else _layer(reader, str(part))
        if not isinstance(layer, QgsRasterLayer) or not layer.isValid():
            name = layer.name() if isinstance(layer, QgsMapLayer) else part
            raise JobError(f"'{name}', one of the further rasters, is no raster that QGIS can open.")
        yield layer


def _of_layer(layer: QgsRasterLayer) -> Source:
    return service_layer(layer) or source_raster(layer)


def _split(reader: ParameterReader, value: Any) -> list[Any]:
    """Give the parts of a value that is no list: a layer, text with semicolons, an expression."""
    if isinstance(value, (str, QgsMapLayer, os.PathLike)):
        return [value] if not isinstance(value, str) else [part for part in value.split(";") if part]
    return list(reader.algorithm.parameterAsLayerList(reader.parameters, keys.MORE_INPUTS, reader.context))


def _layer(reader: ParameterReader, name: str) -> QgsMapLayer | None:
    return QgsProcessingUtils.mapLayerFromString(name, reader.context, True, QgsProcessingUtils.LayerHint.Raster)


def opened(
    inputs: InputList,
    transforms: QgsCoordinateTransformContext,
    client: HttpClient | None = None,
    told: Told = always,
    progress: Progress | None = None,
) -> InputRasters:
    """Look at all rasters.

    Args:
        inputs: What the parameters name.
        transforms: How coordinates are converted.
        client: Asks servers; None where no raster lies on one.
        progress: Told the bytes of a download that are there, and of all where that is known.
        told: Called with the number of rasters that were looked at, and of all; gives False to stop.

    Raises:
        InferenceError: one cannot be opened; where they are searched one by one: none can.
        Canceled: `told` said so.
    """
    rasters: list[SourceRaster] = []
    unseen: list[RasterItem] = []
    owners: dict[str, str] = {}
    error: InferenceError | None = None
    for number, source in enumerate(inputs.sources):
        if not told(number, len(inputs.sources)):
            raise Canceled
        try:
            raster = _looked_at(source, client, progress)
            if isinstance(source, ServerSource) and source.reference.portal and raster.kind == "image_service":
                owners[raster.connection] = source.reference.portal
            rasters += items_of(raster, client) if client is not None and inputs.is_separate else [raster]
        except (RasterOpenError, ServiceError, CredentialError) as failure:
            if not inputs.is_separate:
                raise
            error = error or failure
            unseen.append(named_item(source) if isinstance(source, str) else source.item)
    if error is not None and not rasters:
        raise error
    whole = rasters[0]
    _check_places(rasters, inputs.is_separate)
    if len(rasters) > 1:
        extent = _union(rasters, transforms)
        name = f"{whole.name} and {len(rasters) + len(unseen) - 1} more"
        whole = replace(whole, extent=extent, name=name)
    return InputRasters(tuple(rasters), tuple(unseen), inputs.is_separate, whole, owners)


def _looked_at(source: Source, client: HttpClient | None, progress: Progress | None) -> SourceRaster:
    if isinstance(source, ServerSource) and client is not None:
        return described(source, client, progress)
    return file_raster(source) if isinstance(source, str) else cast(SourceRaster, source)


def _check_places(rasters: Sequence[SourceRaster], is_separate: bool) -> None:
    """Refuse pictures where they would have no place beside the others.

    Raises:
        RasterOpenError: that is so.
    """
    pictures = [raster.name for raster in rasters if raster.is_picture]
    if len(rasters) == 1 or not pictures or (is_separate and len(pictures) == len(rasters)):
        return
    names = ", ".join(f"'{name}'" for name in pictures[:5]) + (", ..." if len(pictures) > 5 else "")
    if is_separate:
        raise RasterOpenError(
            f"Some rasters lie on the map and others are pictures without georeference: {names}.",
            hint="Search these in a run of their own, or georeference them.",
        )
    raise RasterOpenError(
        f"Pictures without georeference have no place in a mosaic: {names}.",
        hint="Set the processing mode to PROCESS_ITEMS_SEPARATELY, or georeference them.",
    )


def named_item(name: str) -> RasterItem:
    """Give a raster that is only known by name as the job names it."""
    return RasterItem("gdal", name, file_name(name))


def check_all_bands(inputs: InputRasters, definition: ModelDefinition) -> None:
    """Compare the model's bands with those of all rasters; of rasters that are searched one by one, one must suit.

    Raises:
        ModelIncompatibleError: a raster lacks one.
    """
    errors = [error for error in (_band_error(raster, definition) for raster in inputs.rasters) if error is not None]
    if errors and (not inputs.is_separate or len(errors) == len(inputs.rasters)):
        raise errors[0]


def _band_error(raster: SourceRaster, definition: ModelDefinition) -> ModelIncompatibleError | None:
    try:
        check_bands(raster, definition)
    except ModelIncompatibleError as error:
        return error
    return None


def _union(rasters: Sequence[SourceRaster], transforms: QgsCoordinateTransformContext) -> QgsRectangle:
    """Give the extent of all in the first one's coordinate reference system."""
    first, extent = rasters[0], QgsRectangle(rasters[0].extent)
    for raster in rasters[1:]:
        extent.combineExtentWith(_extent_in(raster, first.crs, transforms))
    return extent


def _extent_in(
    raster: SourceRaster, crs: QgsCoordinateReferenceSystem, transforms: QgsCoordinateTransformContext
) -> QgsRectangle:
    if raster.crs == crs or not (raster.crs.isValid() and crs.isValid()):
        return raster.extent
    try:
        return QgsCoordinateTransform(raster.crs, crs, transforms).transformBoundingBox(raster.extent)
    except QgsCsException as error:
        raise RasterOpenError(
            f"The raster '{raster.name}' lies where the coordinate reference system of the first one does not reach.",
            hint="Put another raster first.",
        ) from error
