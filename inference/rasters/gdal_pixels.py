"""Rasters that GDAL opens, read with rasterio: one handle a thread, resampled on the fly where a cell size is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioError

from ..errors import ModelIncompatibleError, RasterOpenError, RasterReadError, first_line
from ..job import RasterItem
from ..models.fit_rules import NO_INKS, alpha_hint, are_inks, find_band
from ..tiling import Window
from .access import ALONE, RasterAccess
from .camera import orientation_of
from .gdal_options import check_typed
from .gdal_reading import reading_of
from .grid import ANY_PLANE, PICTURE, is_picture, on_grid
from .sampling import sample_values
from .source import GridRequest, RasterInfo
from .virtual_parts import is_part_missing, part_error

_PALETTE_BANDS: dict[int | str, int] = {0: 0, 1: 1, 2: 2, "red": 0, "green": 1, "blue": 2}

_CACHED_ROWS = 2048
_CACHE_LIMITS = (64 * 2**20, 1024 * 2**20)


class GdalPixels:
    """A raster on disk or behind a /vsi name; each thread that reads opens it for itself.

    Args:
        item: The raster; `source` is GDAL's connection string.
        bands: Which bands, in which order: 0-based numbers, or names.
        grid: The grid of pixels to read.

    Raises:
        RasterOpenError: it cannot be opened, or has no usable georeference.
        ModelIncompatibleError: it lacks a band, or its type cannot be used.
    """

    def __init__(
        self, item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, access: RasterAccess = ALONE
    ) -> None:
        """Open the raster once to look at it."""
        check_typed(item.source)
        self._item, self._grid = item, grid
        self._reading = reading_of(item, self._opened, access)
        try:
            self._reading.call(lambda dataset: self._look(dataset, bands))
        except BaseException:
            self._reading.close()
            raise

    def _look(self, dataset: Any, bands: tuple[int | str, ...]) -> None:
        self._reading.settings["GDAL_CACHEMAX"] = _cache_bytes(dataset)
        stored = _stored(dataset)
        has_place = not is_picture(stored)
        self._orientation = 1 if has_place else orientation_of({**stored.tags(), **stored.tags(ns="EXIF")})
        self._palette = _palette(dataset, bands)
        self._bands = (1,) if self._palette is not None else resolve_bands(dataset, bands)
        # A band that is marked as transparency and read all the same shows something else: near infrared, mostly.
        is_alpha_read = any(dataset.colorinterp[band - 1] == ColorInterp.alpha for band in self._bands)
        if is_alpha_read and stored is not dataset:
            raise ModelIncompatibleError(
                "A band that is marked as transparency (alpha) is read as an image, and other pixels than the raster's "
                "own are asked for: GDAL would weigh the other bands by it.",
                hint="Clear the mark first, with gdal_edit.py -colorinterp_4 undefined for the fourth band, or leave "
                "cell size and snap raster empty.",
            )
        self._ignores_mask = is_alpha_read or all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums)
        self._alpha = _alpha_band(dataset) if self._ignores_mask and not is_alpha_read else None
        self._band_names = _band_names(dataset)
        self._nodata = None if dataset.nodata is None else float(dataset.nodata)
        self._info = RasterInfo(
            dataset.width,
            dataset.height,
            len(bands),
            self._dtype(dataset),
            dataset.transform if has_place or dataset is not stored else PICTURE,
            crs_of(self._item, dataset).to_wkt() if has_place else "",
            dataset.block_shapes[0][0],
        )

    def _dtype(self, dataset: Any) -> str:
        if self._palette is not None:
            return "uint8"
        return str(np.result_type(*[dataset.dtypes[band - 1] for band in self._bands]))

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return self._item.address

    @property
    def info(self) -> RasterInfo:
        """Describe the raster."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read; one where a colour table stands for three."""
        return self._bands

    @property
    def orientation(self) -> int:
        """Give EXIF's orientation of a picture without georeference; 1 of anything else: the map says how it lies."""
        return self._orientation

    @property
    def band_names(self) -> tuple[str, ...]:
        """Give the description of each band, or its colour; bands of transparency are left out."""
        return self._band_names

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels are colours of a colour table."""
        return self._palette is not None

    @property
    def nodata(self) -> float | None:
        """Give the value that stands for no data."""
        return self._nodata

    def identity(self) -> list[Any] | None:
        """Give what `GdalReading.identity` does, see gdal_reading.py."""
        return self._reading.identity()

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band as the file holds them, spread over the whole raster, see sampling.py.

        Raises:
            RasterReadError: the pixels cannot be read.
        """
        whole = Window(0, 0, self.info.width, self.info.height)
        with _as_read_error(self.name, whole):
            try:
                return self._reading.call(self._sampled)
            except RasterioError as error:  # after all tries: a damaged part
                if is_part_missing(self._item.source, error):
                    raise
                return self._reading.call(lambda dataset: self._sampled(dataset, passes_over_damage=True))

    def _sampled(self, dataset: Any, *, passes_over_damage: bool = False) -> list[NDArray[Any]]:
        return sample_values(
            _stored(dataset), self._bands, ignores_mask=self._ignores_mask, passes_over_damage=passes_over_damage
        )

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window that lies inside, see `PixelSource.read`."""
        area = rasterio.windows.Window(window.x, window.y, window.width, window.height)
        with _as_read_error(self.name, window):
            pixels, present = self._reading.call(lambda dataset: self._values(dataset, area))
        if self._palette is not None:
            pixels = self._palette[:, np.clip(pixels[0], 0, self._palette.shape[1] - 1)]
            present = np.repeat(present, len(pixels), axis=0)
        return pixels, present

    def _values(self, dataset: Any, area: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        pixels = dataset.read(self._bands, window=area)
        if self._alpha is not None:
            return pixels, np.repeat(dataset.read([self._alpha], window=area) > 0, len(pixels), axis=0)
        if self._ignores_mask:
            return pixels, np.ones(pixels.shape, np.bool_)
        return pixels, dataset.read_masks(self._bands, window=area) > 0

    def _opened(self, name: str) -> list[Any]:
        opened = _open(self._item, name)
        try:
            crs = ANY_PLANE if is_picture(opened) else crs_of(self._item, opened)
            dataset = on_grid(opened, self._grid, crs)
        except RasterOpenError:
            opened.close()
            raise
        return [dataset] if dataset is opened else [dataset, opened]

    def close(self) -> None:
        """Close all threads' handles; none of them may be reading."""
        self._reading.close()


def _stored(dataset: Any) -> Any:
    """Give the raster behind one that is resampled to another grid."""
    return getattr(dataset, "src_dataset", dataset)


def _cache_bytes(dataset: Any) -> int:
    """Give the size of GDAL's block cache: what the rows of tiles that overlap share is to be decoded once.

    More would fill up with blocks that nobody asks for again, until the whole raster is in memory.
    """
    row = dataset.width * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    low, high = _CACHE_LIMITS
    return int(min(max(row * _CACHED_ROWS, low), high))


def _open(item: RasterItem, name: str) -> Any:
    """Open what messages call `item`'s source, and GDAL `name`.

    Raises:
        RasterOpenError: it cannot be opened, or has no usable georeference.
    """
    options = item.options.get("open_options", {})
    try:
        dataset = rasterio.open(name, **options)
    except (RasterioError, ValueError) as error:
        reason = first_line(error).replace(item.source, item.address)
        raise RasterOpenError(f"The raster '{item.address}' cannot be opened: {reason}.") from error
    try:
        _check_place(dataset, item.address)
    except RasterOpenError:
        dataset.close()
        raise
    return dataset


def _check_place(dataset: Any, name: str) -> None:
    if is_picture(dataset):
        return
    if dataset.transform == Affine.identity():
        kind = "only ground control points or RPCs" if dataset.gcps[0] or dataset.rpcs else "no georeference"
        raise RasterOpenError(
            f"The raster '{name}' has {kind}.", hint="Georeference it first (Georeferencer, gdalwarp)."
        )
    if dataset.transform.determinant == 0 or not all(math.isfinite(value) for value in dataset.transform[:6]):
        raise RasterOpenError(f"The raster '{name}' has pixels without area: its georeference is damaged.")


def crs_of(item: RasterItem, dataset: Any) -> CRS:
    """Give a raster's coordinate reference system: the one that the user gave it, else its own.

    Raises:
        RasterOpenError: it has none, or none that can be understood.
    """
    try:
        crs = CRS.from_wkt(item.crs_wkt) if item.crs_wkt else dataset.crs
    except CRSError as error:
        raise RasterOpenError(
            f"The coordinate reference system that was given to the raster '{item.shown}' cannot be used: {error}.",
            hint="Give the layer another one.",
        ) from error
    if crs is None:
        raise RasterOpenError(
            f"The raster '{item.address}' has no coordinate reference system.",
            hint="Give its layer one in QGIS, or write it into the file with 'Assign projection' of the raster menu.",
        )
    return crs


def resolve_bands(dataset: Any, bands: tuple[int | str, ...]) -> tuple[int, ...]:
    """Give the raster's 1-based band numbers for the model's bands.

    Raises:
        ModelIncompatibleError: the raster has no such band, or one of a type that no model takes.
    """
    n_needed = max((band + 1 for band in bands if isinstance(band, int)), default=0)
    n_colors = sum(color != ColorInterp.alpha for color in dataset.colorinterp)
    if n_needed > n_colors:
        raise ModelIncompatibleError(
            f"The model needs at least {n_needed} bands, and the raster has {n_colors}.",
            hint="Choose a raster with the bands that the model was trained on."
            + alpha_hint([n for n, color in enumerate(dataset.colorinterp, 1) if color == ColorInterp.alpha]),
        )
    numbers = tuple(_band_number(dataset, band) for band in bands)
    inks = are_inks([dataset.colorinterp[number - 1].name for number in numbers])
    if inks and not all(isinstance(band, str) for band in bands):
        raise ModelIncompatibleError(inks, hint=NO_INKS)
    for number in numbers:
        if dataset.dtypes[number - 1].startswith("complex"):
            raise ModelIncompatibleError(f"Band {number} holds complex numbers, which no model takes.")
    return numbers


def _alpha_band(dataset: Any) -> int | None:
    """Give the 1-based number of a band of transparency that GDAL takes for no mask, as it is not of bytes."""
    colors = list(dataset.colorinterp)
    return colors.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in colors else None


def _band_names(dataset: Any) -> tuple[str, ...]:
    bands = zip(dataset.descriptions, dataset.colorinterp)
    return tuple(str(name or color.name) for name, color in bands if color != ColorInterp.alpha)


def _band_number(dataset: Any, band: int | str) -> int:
    colors = list(dataset.colorinterp)
    if isinstance(band, str):
        names = [str(description or "").lower() for description in dataset.descriptions]
        names = [name or color.name.lower() for name, color in zip(names, colors)]
        place = find_band(band, names)
        if place is None:
            raise ModelIncompatibleError(
                f"The model needs a band named '{band}', and the raster's bands are: {', '.join(names)}."
            )
        return place + 1
    return [index for index, color in enumerate(colors, 1) if color != ColorInterp.alpha][band]


def _palette(dataset: Any, wanted: tuple[int | str, ...]) -> NDArray[np.uint8] | None:
    """Give the colour table as (C, entries) where one paletted band stands for the three that the model wants."""
    n_colors = sum(color != ColorInterp.alpha for color in dataset.colorinterp)
    if n_colors != 1 or len(wanted) != 3 or dataset.colorinterp[0] != ColorInterp.palette:
        return None
    table = dataset.colormap(1)
    colors = np.zeros((3, max(table) + 1), np.uint8)
    for index, color in table.items():
        colors[:, index] = color[:3]
    bands = [band.lower() if isinstance(band, str) else band for band in wanted]
    if not set(bands) <= set(_PALETTE_BANDS):
        shown = ", ".join(str(band) for band in wanted)
        raise ModelIncompatibleError(f"The model needs the bands {shown}, and the raster's colour table has RGB only.")
    return np.ascontiguousarray(colors[[_PALETTE_BANDS[band] for band in bands]])


@contextmanager
def _as_read_error(name: str, window: Window) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        reason = error.__cause__ or error
        if is_part_missing(name, error):
            raise part_error(name, str(reason)) from error
        raise RasterReadError(
            f"The raster '{name}' cannot be read at columns {window.x} to {window.right}, "
            f"rows {window.y} to {window.bottom}: {reason}.",
            window=[window.x, window.y, window.width, window.height],
        ) from error
