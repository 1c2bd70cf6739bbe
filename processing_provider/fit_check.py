"""Does a raster suit a model, asked before anything runs: cell size, bands by name, values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from osgeo import gdal
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsRasterLayer,
    QgsUnitTypes,
)

from ..inference.errors import ModelIncompatibleError, RasterOpenError
from ..inference.models.definition import CellSizeRange, ModelDefinition
from ..inference.models.fit_rules import (
    AS_BYTES,
    CellSizeProblem,
    Unit,
    band_warnings,
    cell_size_problem,
    chosen_stretch,
    range_in_metres,
    resolution,
    stretch_text,
    value_warnings,
)
from .cell_size import ground_at
from .gdal_source import GdalSource, open_dataset
from .raster_source import SourceRaster, check_bands, source_raster

_REMOTE = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsiadls", "/vsioss", "/vsiswift", "/vsihdfs", "/vsiwebhdfs")
_SAMPLES = 3
"""Windows of pixels a side: nine of them are read, wherever the raster's blocks lie."""
_WINDOW = 96


@dataclass(frozen=True)
class FitReport:
    """How a raster suits a model.

    Attributes:
        cell_size: Its pixels are too fine or too coarse; None: they suit, or nobody knows.
        texts: What else does not suit, and what makes the run impossible.
        is_possible: A run could start.
        ground: Side of a pixel on the ground in metres, None where its place is not known.
        remarks: What the run will do about the raster, and nobody need do.
    """

    cell_size: CellSizeProblem | None
    texts: tuple[str, ...]
    is_possible: bool = True
    ground: float | None = None
    remarks: tuple[str, ...] = ()

    def all_texts(self) -> list[str]:
        """Give everything that a person should read."""
        return [*([self.cell_size.text] if self.cell_size else []), *self.texts]


@dataclass(frozen=True)
class Unreadable:
    """A layer that the worker could not read, and why; nothing in it is bound to the layer."""

    reason: str


def look_at(layer: QgsRasterLayer) -> SourceRaster | Unreadable:
    """Describe a layer as plain values: it may be gone by the time they are used."""
    try:
        return source_raster(layer)
    except RasterOpenError as error:
        return Unreadable(str(error))


def fit_of(definition: ModelDefinition, raster: SourceRaster | Unreadable, cell_size: float | None = None) -> FitReport:
    """Compare a layer with a model; also where Kestrel cannot read it."""
    if isinstance(raster, Unreadable):
        return FitReport(None, (raster.reason,), is_possible=False)
    return fit_report(definition, raster, cell_size)


def fit_report(definition: ModelDefinition, raster: SourceRaster, cell_size: float | None = None) -> FitReport:
    """Compare a raster with a model.

    Args:
        definition: The model.
        raster: The raster.
        cell_size: The parameter CELL_SIZE, in the raster's units; None: the raster's own, or what the model wants.
    """
    if raster.by_qgis is not None:
        return _picture_report(definition, raster)
    place = None if raster.is_picture else ground_at(raster.crs, raster.extent.center(), raster.cell_size)
    reading = None
    if place is not None and not cell_size:
        reading = resolution(definition.cell_size, place[0], raster.cell_size)
    problem = None if reading else _cell_size_problem(definition, raster, place, cell_size)
    ground = place[0] if place else None
    remarks = (reading.text,) if reading else ()
    try:
        check_bands(raster, definition)
    except ModelIncompatibleError as error:
        return FitReport(problem, (str(error),), is_possible=False, ground=ground, remarks=remarks)
    found = None if raster.has_palette else value_range(raster, definition)
    texts = _warnings(definition, raster, found, "model")
    return FitReport(problem, texts, ground=ground, remarks=(*remarks, *_stretch_remarks(definition, raster, found)))


def _picture_report(definition: ModelDefinition, raster: SourceRaster) -> FitReport:
    """Compare a layer that QGIS reads: its resolution is chosen for the model, where the run takes place."""
    try:
        check_bands(raster, definition)
    except ModelIncompatibleError as error:
        return FitReport(None, (str(error),), is_possible=False)
    remark = (
        f"QGIS reads the layer '{raster.name}' for the run, at the resolution that is nearest to what the model was "
        "made for. CELL_SIZE overrules it."
    )
    return FitReport(None, _warnings(definition, raster, None, "model"), remarks=(remark,))


def fit_warnings(definition: ModelDefinition, raster: SourceRaster, stretch: str = "model") -> tuple[str, ...]:
    """Tell what does not suit besides the cell size, which the worker looks at.

    Args:
        definition: The model.
        raster: The raster.
        stretch: The model argument of that name.
    """
    found = None if raster.has_palette else value_range(raster, definition)
    return _warnings(definition, raster, found, stretch)


def _warnings(
    definition: ModelDefinition, raster: SourceRaster, found: tuple[float, float] | None, stretch: str
) -> tuple[str, ...]:
    if raster.has_palette:
        return ()
    values = value_warnings(definition, raster.dtype, found, stretch)
    return (*band_warnings(definition, raster.band_names), *values)


def _stretch_remarks(
    definition: ModelDefinition, raster: SourceRaster, found: tuple[float, float] | None
) -> tuple[str, ...]:
    chosen = None if raster.has_palette else chosen_stretch(definition, "model", raster.dtype, found)
    if chosen in (None, AS_BYTES):
        return ()
    text = (
        f"The raster's values will be stretched to the model's {chosen.to[0]:g} to {chosen.to[1]:g} "
        f"({stretch_text(chosen)}). The model argument stretch overrules it."
    )
    return (text,)


def _cell_size_problem(
    definition: ModelDefinition, raster: SourceRaster, place: tuple[float, float] | None, cell_size: float | None
) -> CellSizeProblem | None:
    unit = unit_of(definition.cell_size)
    if definition.cell_size is None or unit is None or place is None:
        return None
    actual, latitude = place
    side = raster.cell_size
    if cell_size is not None and cell_size > 0:
        actual, side = actual * cell_size / side, cell_size
    low, high = range_in_metres(definition.cell_size, unit, latitude)
    return cell_size_problem(low, high, actual, side)


def unit_of(cell_size: CellSizeRange | None) -> Unit | None:
    """Give the unit of a model's cell size; None where its coordinate reference system is not known."""
    if cell_size is None or cell_size.wkid is None:
        return Unit()
    for authority in ("EPSG", "ESRI"):
        crs = QgsCoordinateReferenceSystem(f"{authority}:{cell_size.wkid}")
        if crs.isValid():
            to_metres = QgsUnitTypes.fromUnitToUnitFactor(crs.mapUnits(), Qgis.DistanceUnit.Meters)
            return Unit(is_degree=True) if crs.isGeographic() else Unit(to_metres)
    return None


def value_range(raster: SourceRaster, definition: ModelDefinition) -> tuple[float, float] | None:
    """Give lowest and highest value of a sample of the pixels of the model's bands.

    None where that would take time, and where no pixel is valid or can be read.

    Nine small windows are read: a look at the whole raster could take minutes, and QGIS's own statistics write a file
    beside the raster.
    """
    is_far = raster.kind != "gdal" or any(part in raster.connection for part in _REMOTE)
    if raster.by_qgis is not None or is_far:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        gdal.PushErrorHandler("CPLQuietErrorHandler")
        try:
            dataset = open_dataset(raster.name, raster.source or GdalSource(raster.connection))
            return _sampled(dataset, _band_numbers(raster, definition))
        except (RuntimeError, RasterOpenError):
            return None  # a damaged file, where GDAL raises exceptions: the run says so
        finally:
            gdal.PopErrorHandler()


def _band_numbers(raster: SourceRaster, definition: ModelDefinition) -> list[int]:
    places = [raster.band_index(band) for band in definition.input.bands]
    return [place for place in places if place is not None]


def _sampled(dataset: Any, bands: list[int]) -> tuple[float, float] | None:
    import numpy as np

    lows, highs = [], []
    for x, y in _windows(dataset.RasterXSize, dataset.RasterYSize):
        width, height = min(_WINDOW, dataset.RasterXSize), min(_WINDOW, dataset.RasterYSize)
        mask = dataset.GetRasterBand(1).GetMaskBand().ReadAsArray(x, y, width, height)
        for place in bands:
            pixels = dataset.GetRasterBand(place + 1).ReadAsArray(x, y, width, height)
            if mask is None or pixels is None:
                continue  # a damaged file: the run says so
            values = pixels.astype(np.float64)
            values = values[(mask > 0) & np.isfinite(values)]
            if len(values):
                lows.append(float(values.min()))
                highs.append(float(values.max()))
    return (min(lows), max(highs)) if lows else None


def _windows(width: int, height: int) -> list[tuple[int, int]]:
    def starts(size: int) -> list[int]:
        last = max(size - _WINDOW, 0)
        return sorted({round(last * step / (_SAMPLES - 1)) for step in range(_SAMPLES)})

    return [(x, y) for y in starts(height) for x in starts(width)]
