"""Rasters that GDAL opens, read with rasterio: one handle a thread, resampled on the fly where a cell size is asked."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT

from ..errors import ModelIncompatibleError, RasterOpenError, RasterReadError
from ..models.definition import InputSpec
from ..models.fit_rules import find_band
from ..tiling import Window
from .sampling import sample_values
from .source import RasterInfo
from .stretching import BandStretch

_SQUARE_TOLERANCE = 0.01
"""Share by which a pixel's sides may differ and still count as equal."""

_PALETTE_BANDS: dict[int | str, int] = {0: 0, 1: 1, 2: 2, "red": 0, "green": 1, "blue": 2}

_CACHED_ROWS = 2048
_CACHE_LIMITS = (64 * 2**20, 1024 * 2**20)
_SETTINGS = {
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
}


class GdalRaster:
    """A raster on disk or behind a /vsi name.

    Args:
        name: GDAL connection string.
        spec: The model's input: which bands, in which order, and which values are ordinary.
        cell_size: Side of the square pixels to read, in map units; None: the raster's own pixels.
        stretch: What becomes of the values; None: they stay.

    Raises:
        RasterOpenError: it cannot be opened, or has no usable georeference.
        ModelIncompatibleError: it lacks bands that the model needs, or its type cannot be used.
    """

    def __init__(self, name: str, spec: InputSpec, cell_size: float | None, stretch: BandStretch | None = None) -> None:
        """Open the raster once to look at it; each reading thread opens it again."""
        if "<" in name and ">" in name:  # GDAL finds XML anywhere in a name
            raise RasterOpenError("A raster given as XML text is not opened.", hint="Save it as a .vrt file first.")
        self._name = name
        self._cell_size = cell_size
        self.stretch = stretch
        self._settings: dict[str, Any] = dict(_SETTINGS)
        self._threads = threading.local()
        self._handles: list[Any] = []
        self._lock = threading.Lock()
        dataset = self._dataset()
        self._settings["GDAL_CACHEMAX"] = _cache_bytes(dataset)
        self._palette = _palette(dataset, spec)
        self._bands = (1,) if self._palette is not None else resolve_bands(dataset, spec.bands)
        # Stretched, no value is special any more: what was nodata is as black as beyond the raster's edge.
        self._fill = stretch is not None or _fills_invalid(dataset, spec)
        self._service, self._pad_value = spec.service, spec.pad_value
        self._ignores_mask = all(MaskFlags.all_valid in flags for flags in dataset.mask_flag_enums)
        self._info = RasterInfo(
            dataset.width,
            dataset.height,
            len(spec.bands),
            self._dtype(dataset),
            dataset.transform,
            dataset.crs.to_wkt(),
            dataset.block_shapes[0][0],
        )

    def _dtype(self, dataset: Any) -> str:
        if self._palette is not None:
            return "uint8"
        if self.stretch is not None:
            return self.stretch.dtype
        return str(np.result_type(*[dataset.dtypes[band - 1] for band in self._bands]))

    @property
    def files(self) -> list[str]:
        """Give the files that the raster consists of: of a mosaic by reference also those that it refers to."""
        with rasterio.Env(**self._settings):
            return sorted(_files_of(self._name, set()))

    @property
    def name(self) -> str:
        """Give the connection string that it was opened with."""
        return self._name

    @property
    def info(self) -> RasterInfo:
        """Describe the raster."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read; one where a colour table stands for three."""
        return self._bands

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels are colours of a colour table."""
        return self._palette is not None

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band as the file holds them, spread over the whole raster, see sampling.py.

        Raises:
            RasterReadError: the pixels cannot be read.
        """
        whole = Window(0, 0, self.info.width, self.info.height)
        with _as_read_error(self._name, whole), rasterio.Env(**self._settings), _open(self._name) as dataset:
            return sample_values(dataset, self._bands, ignores_mask=self._ignores_mask)

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read a window, which may hang over the raster's edge, see `RasterSource.read`."""
        info = self._info
        pixels = np.full((info.n_bands, window.height, window.width), self._pad_value).astype(info.dtype)
        valid = np.zeros((window.height, window.width), np.bool_)
        inside = window.intersect(Window(0, 0, info.width, info.height))
        if inside.width == 0 or inside.height == 0:
            return pixels, valid
        rows = slice(inside.y - window.y, inside.bottom - window.y)
        columns = slice(inside.x - window.x, inside.right - window.x)
        with _as_read_error(self._name, window):
            part, part_valid = self._read_inside(inside)
        pixels[:, rows, columns], valid[rows, columns] = part, part_valid
        return pixels, valid

    def _read_inside(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        dataset = self._dataset()
        area = rasterio.windows.Window(window.x, window.y, window.width, window.height)
        with rasterio.Env(**self._settings):
            pixels = dataset.read(self._bands, window=area)
            if self._ignores_mask:
                present = np.ones(pixels.shape, np.bool_)
            else:
                present = dataset.read_masks(self._bands, window=area) > 0
        if self._palette is not None:
            pixels = self._palette[:, np.clip(pixels[0], 0, self._palette.shape[1] - 1)]
            present = np.repeat(present, len(pixels), axis=0)
        if np.issubdtype(pixels.dtype, np.floating):
            finite = np.isfinite(pixels)
            present &= finite
            pixels[~finite] = 0
        if self._service and np.issubdtype(pixels.dtype, np.floating):
            pixels = service_numbers(pixels, self._service)
        if self.stretch is not None:
            pixels = self.stretch.apply(pixels)
        if self._fill:
            pixels[~present] = self._pad_value
        valid: NDArray[np.bool_] = np.any(present, axis=0)
        return pixels, valid

    def _dataset(self) -> Any:
        dataset = getattr(self._threads, "dataset", None)
        if dataset is None:
            with rasterio.Env(**self._settings):
                opened = _open(self._name)
                dataset = _resampled(opened, self._cell_size)
            with self._lock:
                self._handles += [dataset, opened]
            self._threads.dataset = dataset
        return dataset

    def close(self) -> None:
        """Close all threads' handles; none of them may be reading."""
        with self._lock:
            for handle in self._handles:
                handle.close()
            self._handles.clear()
        self._threads = threading.local()


def _cache_bytes(dataset: Any) -> int:
    """Give the size of GDAL's block cache: what the rows of tiles that overlap share is to be decoded once.

    More would fill up with blocks that nobody asks for again, until the whole raster is in memory.
    """
    row = dataset.width * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
    low, high = _CACHE_LIMITS
    return int(min(max(row * _CACHED_ROWS, low), high))


def _open(name: str) -> Any:
    try:
        dataset = rasterio.open(name)
    except (RasterioError, ValueError) as error:
        raise RasterOpenError(f"The raster '{name}' cannot be opened: {error}.") from error
    if dataset.transform == Affine.identity():
        kind = "only ground control points or RPCs" if dataset.gcps[0] or dataset.rpcs else "no georeference"
        raise RasterOpenError(
            f"The raster '{name}' has {kind}.", hint="Georeference it first (Georeferencer, gdalwarp)."
        )
    if dataset.crs is None:
        raise RasterOpenError(
            f"The raster '{name}' has no coordinate reference system.",
            hint="Assign one first, for example with 'Assign projection' of the raster menu.",
        )
    if dataset.transform.determinant == 0:
        raise RasterOpenError(f"The raster '{name}' has pixels without area: its georeference is damaged.")
    return dataset


def _files_of(name: str, known: set[str]) -> set[str]:
    with rasterio.open(name) as dataset:
        files = set(dataset.files or [name])
    for file in files - known:
        known.add(file)
        if file.lower().endswith(".vrt") and file != name:
            _files_of(file, known)
    return known


def _resampled(dataset: Any, cell_size: float | None) -> Any:
    """Give the raster on square pixels: of `cell_size`, or of its shorter side where its own are not square."""
    t = dataset.transform
    across, down = math.hypot(t.a, t.d), math.hypot(t.b, t.e)
    if cell_size is None:
        if abs(across - down) <= _SQUARE_TOLERANCE * max(across, down):
            return dataset
        cell_size = min(across, down)
    scale_x, scale_y = cell_size / across, cell_size / down
    if max(abs(scale_x - 1), abs(scale_y - 1)) < 1e-9:
        return dataset
    width, height = math.ceil(dataset.width / scale_x - 1e-6), math.ceil(dataset.height / scale_y - 1e-6)
    if max(width, height) > 2**31 - 1:
        raise RasterOpenError(f"A cell size of {cell_size:g} gives {width} x {height} pixels; that is too many.")
    return WarpedVRT(
        dataset,
        crs=dataset.crs,
        src_crs=dataset.crs,
        transform=t * Affine.scale(scale_x, scale_y),
        width=width,
        height=height,
        resampling=_resampling(dataset, max(scale_x, scale_y)),
        tolerance=1e-6,  # the same pixel must come out whatever window it is read with
        add_alpha=dataset.nodata is None and not _has_alpha(dataset),
    )


def _resampling(dataset: Any, scale: float) -> Resampling:
    if ColorInterp.palette in dataset.colorinterp:
        return Resampling.nearest  # the mean of two entries of a colour table is a third colour
    return Resampling.average if scale > 1.5 else Resampling.bilinear


def _has_alpha(dataset: Any) -> bool:
    return ColorInterp.alpha in dataset.colorinterp


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
            hint="Choose a raster with the bands that the model was trained on.",
        )
    numbers = tuple(_band_number(dataset, band) for band in bands)
    for number in numbers:
        if dataset.dtypes[number - 1].startswith("complex"):
            raise ModelIncompatibleError(f"Band {number} holds complex numbers, which no model takes.")
    return numbers


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


def _palette(dataset: Any, spec: InputSpec) -> NDArray[np.uint8] | None:
    """Give the colour table as (C, entries) where one paletted band stands for the three that the model wants."""
    n_colors = sum(color != ColorInterp.alpha for color in dataset.colorinterp)
    if n_colors != 1 or len(spec.bands) != 3 or dataset.colorinterp[0] != ColorInterp.palette:
        return None
    table = dataset.colormap(1)
    colors = np.zeros((3, max(table) + 1), np.uint8)
    for index, color in table.items():
        colors[:, index] = color[:3]
    bands = [band.lower() if isinstance(band, str) else band for band in spec.bands]
    if not set(bands) <= set(_PALETTE_BANDS):
        wanted = ", ".join(str(band) for band in spec.bands)
        raise ModelIncompatibleError(f"The model needs the bands {wanted}, and the raster's colour table has RGB only.")
    return np.ascontiguousarray(colors[[_PALETTE_BANDS[band] for band in bands]])


def service_numbers(reflectance: NDArray[Any], service: str) -> NDArray[Any]:
    """Turn reflectances 0 to 1 into the whole numbers in which an image service delivers them.

    Args:
        reflectance: Pixels of a floating type.
        service: "sentinel" (times 10000) or "landsat" (Collection 2: an offset of -0.2, a factor of 0.0000275).
    """
    if service == "landsat":
        numbers: NDArray[Any] = (np.clip(reflectance, 0, 1) + 0.2) / 0.0000275
    else:
        numbers = np.clip(np.rint(reflectance * 10000), 0, 65535)
    return numbers


def _fills_invalid(dataset: Any, spec: InputSpec) -> bool:
    """Tell whether invalid pixels become 0.

    A nodata value that is an ordinary value for the model (255 in an 8-bit photo, where saturated white looks like
    nodata) stays: the model has seen it in training, and black dots it has not.
    """
    if dataset.nodata is None or spec.data_range is None or math.isnan(dataset.nodata):
        return True
    low, high = spec.data_range
    return not low <= dataset.nodata <= high


@contextmanager
def _as_read_error(name: str, window: Window) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        reason = error.__cause__ or error
        raise RasterReadError(
            f"The raster '{name}' cannot be read at columns {window.x} to {window.right}, "
            f"rows {window.y} to {window.bottom}: {reason}.",
            window=[window.x, window.y, window.width, window.height],
        ) from error
