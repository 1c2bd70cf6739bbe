"""What the job needs to know of a raster layer, taken from QGIS: its GDAL name, place and bands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osgeo import gdal
from qgis.core import Qgis, QgsCoordinateReferenceSystem, QgsRasterLayer, QgsRectangle

from ..inference.errors import ModelIncompatibleError, RasterOpenError
from ..inference.job import RasterItem
from ..inference.models.definition import ModelDefinition
from ..inference.models.fit_rules import NO_INKS, alpha_hint, are_inks, find_band
from .gdal_source import GdalSource, gdal_source, open_dataset
from .picture_source import PictureFacts, band_facts, finest_side, picture_facts, picture_item, shown_name
from .text import file_name, without_secrets


@dataclass(frozen=True)
class SourceRaster:
    """A raster layer, as plain values that any thread may use."""

    name: str
    connection: str
    """GDAL connection string, or the address of a service."""
    crs: QgsCoordinateReferenceSystem
    extent: QgsRectangle
    cell_size: float
    band_names: tuple[str, ...]
    """Description of each band, or its colour where it has none; bands of transparency are left out."""
    has_palette: bool
    dtype: str = "uint8"
    """Type of the first band's values, as numpy calls it."""
    band_numbers: tuple[int, ...] = ()
    """0-based numbers of those bands in the file; empty: as they stand."""
    alpha_bands: tuple[tuple[int, str], ...] = ()
    """Bands of transparency: 0-based number in the file, and name."""
    is_picture: bool = False
    """It has no place on a map; what QGIS takes for its coordinate reference system is somebody's guess."""
    crs_wkt: str = ""
    """The coordinate reference system that the layer was given in QGIS, where it is not the file's."""
    source: GdalSource | None = None
    """What GDAL opens; None: it does not."""
    by_qgis: PictureFacts | None = None
    """What is special about a raster that QGIS reads for the worker; None: the worker reads it itself."""
    kind: str = "gdal"
    """As `job.RasterItem.kind`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """As `job.RasterItem.options`."""

    @property
    def known_crs(self) -> QgsCoordinateReferenceSystem:
        """Give the coordinate reference system; one that is not valid where it is only somebody's guess."""
        return QgsCoordinateReferenceSystem() if self.is_picture else self.crs

    @property
    def item(self) -> RasterItem:
        """Give it as the job names it."""
        if self.by_qgis is not None:
            return picture_item(self.by_qgis, self.name, self.crs, self.band_names, self.dtype)
        return RasterItem(self.kind, self.connection, self.name, dict(self.options), self.crs_wkt)

    def band_index(self, band: int | str) -> int | None:
        """Give the 0-based number in the file of a band that a model names; None where there is none."""
        place = find_band(band, self.band_names) if isinstance(band, str) else band
        if place is None:
            return next((number for number, name in self.alpha_bands if name.lower() == str(band).lower()), None)
        if place >= len(self.band_names):
            return None
        return self.band_numbers[place] if self.band_numbers else place


def source_raster(layer: QgsRasterLayer) -> SourceRaster:
    """Describe a layer.

    Raises:
        RasterOpenError: the worker could not read it, or its objects would have no place on the map.
    """
    if layer.providerType() != "gdal":
        return _picture(layer)
    source = gdal_source(layer.source())
    dataset = open_dataset(layer.name(), source)
    _check_place(layer, dataset)
    bands = [dataset.GetRasterBand(number + 1) for number in range(dataset.RasterCount)]
    colors = [band.GetColorInterpretation() for band in bands]
    return SourceRaster(
        name=layer.name(),
        connection=source.connection,
        source=source,
        options=source.item_options,
        crs=layer.crs(),
        extent=layer.extent(),
        cell_size=layer.rasterUnitsPerPixelX(),
        band_names=tuple(
            band.GetDescription() or gdal.GetColorInterpretationName(color)
            for band, color in zip(bands, colors)
            if color != gdal.GCI_AlphaBand
        ),
        has_palette=colors == [gdal.GCI_PaletteIndex],
        dtype=_dtype(bands[0].DataType) if bands else "",
        is_picture=is_picture(dataset),
        band_numbers=tuple(number for number, color in enumerate(colors) if color != gdal.GCI_AlphaBand),
        alpha_bands=tuple(
            (number, band.GetDescription() or gdal.GetColorInterpretationName(gdal.GCI_AlphaBand))
            for number, (band, color) in enumerate(zip(bands, colors))
            if color == gdal.GCI_AlphaBand
        ),
        crs_wkt=_given_crs(layer.crs(), dataset),
    )


def _picture(layer: QgsRasterLayer) -> SourceRaster:
    """Describe a layer that QGIS reads for the worker; at which resolution is settled later."""
    facts = picture_facts(layer)
    names, dtype = band_facts(layer.dataProvider())
    return SourceRaster(
        name=shown_name(layer),
        connection="",
        crs=layer.crs(),
        extent=layer.extent(),
        cell_size=finest_side(facts),
        band_names=names,
        has_palette=False,
        dtype=dtype,
        by_qgis=facts,
    )


def file_raster(name: str) -> SourceRaster:
    """Describe a raster that has no layer, in any thread.

    Args:
        name: What GDAL calls it.

    Raises:
        RasterOpenError: it cannot be opened, or the worker could not read it.
    """
    layer = QgsRasterLayer(name, file_name(name), "gdal", QgsRasterLayer.LayerOptions(False))
    if not layer.isValid():
        raise RasterOpenError(
            f"The raster '{without_secrets(name)}' cannot be opened.",
            hint="Check the path, and that QGIS can open it as a layer.",
        )
    return source_raster(layer)


def _given_crs(crs: QgsCoordinateReferenceSystem, dataset: Any) -> str:
    """Give the layer's coordinate reference system where somebody chose another one than the file's."""
    own = QgsCoordinateReferenceSystem.fromWkt(dataset.GetProjection() or "")
    return "" if own == crs else crs.toWkt(Qgis.CrsWktVariant.Preferred)


def is_rotated(layer: QgsRasterLayer) -> bool:
    """Tell whether a layer's rows and columns do not run along the axes of its map."""
    if layer.providerType() != "gdal":
        return False
    transform = open_dataset(layer.name(), gdal_source(layer.source())).GetGeoTransform(can_return_null=True)
    return transform is not None and (transform[2] != 0 or transform[4] != 0)


def check_bands(raster: SourceRaster, definition: ModelDefinition) -> None:
    """Compare the model's bands with the raster's.

    Raises:
        ModelIncompatibleError: the raster lacks one.
    """
    if raster.has_palette and len(definition.input.bands) == 3:
        return
    names = raster.band_names
    inks = are_inks(names)
    if inks and not all(isinstance(band, str) for band in definition.input.bands):
        raise ModelIncompatibleError(inks, hint=NO_INKS)
    for band in definition.input.bands:
        if raster.band_index(band) is None:
            wanted = f"the band '{band}'" if isinstance(band, str) else f"band {band + 1}"
            raise ModelIncompatibleError(
                f"The model '{definition.name}' reads {wanted}, but the raster '{raster.name}' has "
                f"{len(names)} band{'s' if len(names) != 1 else ''}: {', '.join(raster.band_names)}.",
                hint="Choose a raster with the bands that the model was trained on, or say in the parameter Bands "
                "(BANDS) which ones it gets." + alpha_hint([number + 1 for number, _ in raster.alpha_bands]),
            )


def _dtype(kind: int) -> str:
    """Give the numpy name of a GDAL type."""
    name = str(gdal.GetDataTypeName(kind)).lower()
    return {"byte": "uint8"}.get(name, name)


def is_picture(dataset: Any) -> bool:
    """Tell whether a raster has no place on a map: a photo, a scan. It is searched in pixels."""
    has_place = dataset.GetGeoTransform(can_return_null=True) is not None or dataset.GetSpatialRef() is not None
    return not (has_place or dataset.GetGCPCount() or dataset.GetMetadata("RPC"))


def _check_place(layer: QgsRasterLayer, dataset: Any) -> None:
    if is_picture(dataset):
        return
    if dataset.GetGeoTransform(can_return_null=True) is None:
        has_points = dataset.GetGCPCount() or dataset.GetMetadata("RPC")
        reason = "only ground control points or RPCs" if has_points else "no georeference"
        raise RasterOpenError(
            f"The raster '{layer.name()}' has {reason}: its pixels have no place on the map.",
            hint="Georeference it first with Layer > Georeferencer, or warp it with Raster > Projections > Warp.",
        )
    if not layer.crs().isValid():
        raise RasterOpenError(
            f"The raster '{layer.name()}' has no coordinate reference system.",
            hint="Give the layer one with Layer > Set CRS of Layer(s), or write it into the file with "
            "Raster > Projections > Assign Projection.",
        )
