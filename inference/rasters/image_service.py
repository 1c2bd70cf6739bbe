"""An ArcGIS image service, read with its true pixel values.

    <service>?f=json            what there is
    <service>/keyProperties     the bands' names, where the first does not say them
    <service>/exportImage       blocks of pixels as TIFF, on the service's own grid or the one that is asked for

Source: ArcGIS REST API, "Image service", "Key properties", "Export image".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from ..errors import ModelIncompatibleError, NetworkError, RasterOpenError, ServiceError
from ..job import RasterItem
from ..models.fit_rules import find_band
from ..net.http import HttpClient
from ..net.limits import FIRST_CONTACT
from ..tiling import Window
from .arcgis import (
    band_names,
    check_straight,
    coarser,
    native_grid,
    nodata_values,
    read_service,
    reference_of,
    service_url,
)
from .block_cache import BlockCache, Pixels
from .grid import is_same_grid, wanted_grid
from .image_export import NEAREST, RESAMPLINGS, RULES, ImageExport, block_side, stated_count, wanted_type
from .image_reply import Picture, is_refusal, picture_hash, refusals_told
from .source import GridRequest, RasterInfo, TargetGrid

_SAMPLE_WHOLE = 2048 * 2048
_SAMPLE_SIDE = 1024
_IDENTITY_SIDE = 256
_PROBE = 16
_SUSPICIOUS = 0.01
"""Share of a block's pixels that may be 0 in all bands before the service is asked whether it has any there."""

_PALETTE_BANDS: Mapping[int | str, int] = {0: 0, 1: 1, 2: 2, "red": 0, "green": 1, "blue": 2}


class ImageServicePixels:
    """An image service's pixels.

    Args:
        item: `source` is the address, which ends in /ImageServer; `options` may hold "mosaicRule", "renderingRule"
            (JSON objects of ArcGIS), "bandIds" (0-based numbers: the bands that count, in this order), "time", and
            "noData" with "noDataInterpretation" (by itself the service's own values without data count), and "extent"
            (xmin, ymin, xmax, ymax: the part of the service that counts, as of one item of a mosaic).
        bands: Which bands, in which order: 0-based numbers, or names.
        grid: The grid of pixels to read.
        client: Asks the server.

    Raises:
        RasterOpenError: it cannot be read with its values.
        ModelIncompatibleError: it lacks a band, or its type cannot be used.
        NetworkError, ServiceError, CredentialError: the server cannot be asked, or says no.
    """

    def __init__(self, item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, client: HttpClient) -> None:
        """Ask the service what it has, and for a few pixels."""
        self._item, self._client = item, client
        self._rules = {key: item.options[key] for key in RULES if item.options.get(key) not in (None, "", {})}
        service = read_service(
            url := service_url(item), client.get_json(url, self._described(), patience=FIRST_CONTACT.patience)
        )
        if service.only_tiles:
            raise RasterOpenError(
                f"The service '{url}' hands out the tiles of its cache alone, not its pixel values.",
                hint="Ask its owner to publish it as a dynamic image service.",
            )
        self._service = service
        self._native = native_grid(service, item.options.get("extent"))
        self._target = wanted_grid(
            self._native.transform, self._native.width, self._native.height, item.crs_wkt or self._native.crs_wkt, grid
        )
        check_straight(self._target, url)
        self._image_reference = self._reference_of_image(grid)
        self._resampling = self._wanted_resampling(grid)
        available = [str(number) for number in item.options.get("bandIds") or ()]
        is_own = "renderingRule" not in self._rules  # a rule makes bands, values and types of its own
        self._export = ImageExport(client, service, self._rules)
        if is_own:
            count = len(available) or stated_count(service)
            bands_text = ",".join(available) or None
            self._export = replace(self._export, pixel_type=wanted_type(service), bands=bands_text, n_bands=count)
        probe = self._probe()
        self._export = replace(self._export, n_bands=len(probe.pixels))
        self._dtype = np.dtype(probe.pixels.dtype)
        self._nodata = nodata_values(service.data) if is_own else []
        if not self._nodata and probe.nodata is not None:
            self._nodata = [probe.nodata]
        self._taken = list(range(len(probe.pixels)))
        self._palette = self._wanted_palette(probe, bands)
        chosen = (0,) if self._palette is not None else self._chosen(bands)
        ids = [int(available[place]) if available else place for place in chosen]
        self._bands = tuple(number + 1 for number in ids)
        if self._palette is None:
            self._ask_for(ids)
        self._tells_missing = not self._nodata and self._palette is None and self._draws()
        side = block_side(service, len(chosen) * self._dtype.itemsize)
        self._blocks = BlockCache(self._target.width, self._target.height, side, self._fetch)
        self._info = RasterInfo(
            self._target.width,
            self._target.height,
            len(bands),
            "uint8" if self._palette is not None else str(self._dtype),
            self._target.transform,
            self._target.crs_wkt,
            side,
        )

    @property
    def name(self) -> str:
        """Give what messages call it."""
        return self._item.shown

    @property
    def info(self) -> RasterInfo:
        """Describe it."""
        return self._info

    @property
    def bands(self) -> tuple[int, ...]:
        """Give the 1-based numbers of the bands that are read; one where a colour table stands for three."""
        return self._bands

    @property
    def has_palette(self) -> bool:
        """Tell whether the pixels are colours of a colour table."""
        return self._palette is not None

    @property
    def nodata(self) -> float | None:
        """Give the value that stands for no data."""
        return self._nodata[0] if self._nodata and self._palette is None else None

    def read(self, window: Window) -> Pixels:
        """Read a window that lies inside, see `PixelSource.read`."""
        with refusals_told(self.name, window):
            pixels, present = self._blocks.read(window)
        if self._palette is not None:
            pixels = self._palette[:, np.clip(pixels[0], 0, self._palette.shape[1] - 1)]
            present = np.repeat(present, len(pixels), axis=0)
        return pixels, present

    def sample(self) -> list[NDArray[Any]]:
        """Give valid values of each band: all of a small service, else of a coarse picture of it."""
        own = self._native
        with refusals_told(self.name):
            if own.width * own.height > _SAMPLE_WHOLE:
                pixels, present = self._coarse(_SAMPLE_SIDE)
            else:
                side = block_side(self._service, len(self._bands) * self._dtype.itemsize)
                cache = BlockCache(own.width, own.height, side, lambda part: self._own_pixels(own, part))
                pixels, present = cache.read(Window(0, 0, own.width, own.height))
                cache.close()
        return [band[valid] for band, valid in zip(pixels, present)]

    def identity(self) -> list[Any] | None:
        """Give what the service says of itself, what is asked of it, and a hash of a coarse picture.

        A service has no date of change: a change that shows in neither is not seen.
        """
        keys = ("bandCount", "pixelType", "pixelSizeX", "pixelSizeY", "minValues", "maxValues", "meanValues",
                "stdvValues", "serviceDataType", "noDataValue")  # fmt: skip
        facts = {key: self._service.data.get(key) for key in keys}
        digest = picture_hash(lambda: self._coarse(_IDENTITY_SIDE))
        return [self._service.url, list(self._service.extent), facts, self._rules, self._export.bands, digest]

    def _coarse(self, side: int) -> Pixels:
        """Get a coarse picture of everything."""
        grid = coarser(self._native, min(side, *self._service.most_pixels))
        return self._own_pixels(grid, Window(0, 0, grid.width, grid.height))

    def close(self) -> None:
        """Let go of what was read."""
        self._blocks.close()

    def _described(self) -> dict[str, Any]:
        """Give the parameters under which a service describes itself as its rendering rule would make it."""
        return {"renderingRule": self._rules["renderingRule"]} if "renderingRule" in self._rules else {}

    def _reference_of_image(self, grid: GridRequest) -> str:
        if grid.target is None:
            return self._service.reference  # also where the user overrules what it is called
        target = CRS.from_wkt(grid.target.crs_wkt)
        return self._service.reference if target == self._service.crs else reference_of(target)

    def _wanted_resampling(self, grid: GridRequest) -> str:
        native = self._native
        same = is_same_grid(self._target, native.transform, native.width, native.height)
        if same or grid.resampling == "nearest" or self._service.data.get("pixelType") in ("U1", "U2", "U4"):
            return NEAREST
        return RESAMPLINGS.get(grid.resampling, RESAMPLINGS["bilinear"])

    def _middle(self) -> Window:
        own = self._native
        width, height = min(_PROBE, own.width), min(_PROBE, own.height)
        return Window((own.width - width) // 2, (own.height - height) // 2, width, height)

    def _draws(self) -> bool:
        """Tell whether the service draws a picture that is transparent where it has no pixels."""
        try:
            self._export.is_there(self._native, self._middle(), self._service.reference)
        except (ServiceError, NetworkError) as error:
            if not is_refusal(error):
                raise
            return False
        return True

    def _probe(self) -> Picture:
        """Ask for a few pixels: they show number and type of the bands that really come."""
        picture = self._export.picture(self._native, self._middle(), self._service.reference)
        if str(picture.pixels.dtype).startswith("complex"):
            raise ModelIncompatibleError(f"The service '{self.name}' holds complex numbers, which no model takes.")
        return picture

    def _wanted_palette(self, probe: Picture, wanted: tuple[int | str, ...]) -> NDArray[np.uint8] | None:
        """Give the colour table where one band with colours stands for the three that the model wants."""
        if probe.colors is None or len(probe.pixels) != 1 or len(wanted) != 3:
            return None
        bands = [band.lower() if isinstance(band, str) else band for band in wanted]
        if not set(bands) <= set(_PALETTE_BANDS):
            shown = ", ".join(str(band) for band in wanted)
            raise ModelIncompatibleError(
                f"The model needs the bands {shown}, and the service's colour table has red, green and blue only."
            )
        self._resampling = NEAREST  # the mean of two entries is a third colour
        return np.ascontiguousarray(probe.colors[[_PALETTE_BANDS[band] for band in bands]])

    def _chosen(self, wanted: tuple[int | str, ...]) -> tuple[int, ...]:
        """Give the places of the model's bands among those that the service sends."""
        n_needed = max((band + 1 for band in wanted if isinstance(band, int)), default=0)
        n_sent = len(self._taken)
        if n_needed > n_sent:
            raise ModelIncompatibleError(
                f"The model needs at least {n_needed} bands, and the service '{self.name}' has {n_sent}.",
                hint="Choose a raster with the bands that the model was trained on.",
            )
        names = self._names() if any(isinstance(band, str) for band in wanted) else []
        return tuple(band if isinstance(band, int) else self._named(band, names) for band in wanted)

    def _named(self, band: str, names: list[str]) -> int:
        place = find_band(band, names)
        if place is None:
            raise ModelIncompatibleError(
                f"The model needs a band named '{band}', and the bands of '{self.name}' are: {', '.join(names)}."
            )
        return place

    def _names(self) -> list[str]:
        names = band_names(self._service.data, {})
        if not any(names) and self._service.data.get("hasKeyProperties", True):
            try:
                properties = self._client.get_json(f"{self._service.url}/keyProperties", self._described())
                names = band_names(self._service.data, properties)
            except (ServiceError, NetworkError):
                names = []  # an old server, or one without them
        ids = self._item.options.get("bandIds") or range(len(self._taken))
        return [(names[number] if number < len(names) else "") or f"band_{number + 1}" for number in ids]

    def _ask_for(self, ids: list[int]) -> None:
        """Ask for these bands alone from now on; of a rendering rule's bands they are taken from what comes."""
        if len(self._nodata) > 1:
            self._nodata = [self._nodata[number] for number in ids if number < len(self._nodata)]
        if "renderingRule" in self._rules:
            self._taken = ids
            return
        asked = list(dict.fromkeys(ids))
        text = ",".join(str(number) for number in asked)
        self._taken = [asked.index(number) for number in ids]
        self._export = replace(self._export, bands=text, n_bands=len(asked))

    def _fetch(self, window: Window) -> Pixels:
        return self._pixels(self._target, window, self._image_reference, self._resampling)

    def _own_pixels(self, grid: TargetGrid, window: Window) -> Pixels:
        """Get pixels of a grid in the service's own coordinate reference system, as they are."""
        return self._pixels(grid, window, self._service.reference, NEAREST)

    def _pixels(self, grid: TargetGrid, window: Window, reference: str, resampling: str) -> Pixels:
        """Get the bands of the model."""
        picture = self._export.picture(grid, window, reference, resampling)
        self._export.check(picture, self._dtype)
        pixels, present = picture.pixels[self._taken], picture.present[self._taken]
        values = self._nodata if len(self._nodata) == len(pixels) else self._nodata[:1] * len(pixels)
        for index, value in enumerate(values):
            present[index] &= ~_is(pixels[index], value)
        black = np.all(pixels == 0, axis=0)
        if self._tells_missing and present.all() and np.mean(black) > _SUSPICIOUS:
            # Beyond the pictures of a mosaic that names no value for it there are zeros, too.
            present &= ~black | self._export.is_there(grid, window, reference)
        return pixels, present


def _is(pixels: NDArray[Any], value: float) -> NDArray[np.bool_]:
    """Tell where pixels have a value; texts of JSON round the largest floats."""
    exact = not np.issubdtype(pixels.dtype, np.floating)
    same: NDArray[np.bool_] = pixels == value if exact else np.isclose(pixels, value, rtol=1e-6, atol=0)
    return same
