"""An ArcGIS map service, read as a picture in red, green and blue.

    drawn     <service>/export            any area at any cell size; what is transparent is missing
    tiled     <service>/tile/<z>/<y>/<x>  one level of a cache; a tile that the server does not have is missing

A service of both kinds is read from its cache at the level that fits, as its owner made it: drawing it again costs the
server more and looks different. Source: ArcGIS REST API, "Map service", "Export map", "Map tile".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from ..errors import ModelIncompatibleError, RasterOpenError, ServiceError
from ..job import RasterItem
from ..net.http import HttpClient, Reply
from ..net.limits import FIRST_CONTACT
from ..tiling import Window
from .arcgis import (
    Level,
    Service,
    TileScheme,
    bbox_of,
    check_straight,
    coarser,
    read_service,
    reference_of,
    service_url,
)
from .block_cache import BlockCache, Pixels
from .grid import wanted_grid
from .image_reply import Picture, decode, picture_hash, picture_taker, refusals_told
from .source import GridRequest, RasterInfo, TargetGrid

_BLOCK = 1024
_MAX_REPLY = 64 * 2**20
_SAME_SIZE = 0.01
_SAMPLE_SIDE = 1024
_LOOK_SIDE = 1024
_IDENTITY_SIDE = 256
_BANDS: Mapping[int | str, int] = {0: 0, 1: 1, 2: 2, "red": 0, "green": 1, "blue": 2}


class MapServicePixels:
    """A map service's picture.

    Args:
        item: `source` is the address, which ends in /MapServer; `options` may hold "level" (number of a level of the
            cache), "layers" ("show:0,2", as ArcGIS writes it; the picture is drawn then) and "time".
        bands: Which of red, green and blue, in which order: 0 to 2, or their names.
        grid: The grid of pixels to read. Of a service that hands out tiles alone the level counts that is nearest to
            the cell size.
        client: Asks the server.

    Raises:
        RasterOpenError: it cannot be read, or has no pixels of its own and no cell size is given.
        ModelIncompatibleError: another band is wanted.
        NetworkError, ServiceError, CredentialError: the server cannot be asked, or says no.
    """

    def __init__(self, item: RasterItem, bands: tuple[int | str, ...], grid: GridRequest, client: HttpClient) -> None:
        """Ask the service what it has."""
        self._item, self._client = item, client
        url = service_url(item)
        self._service = service = read_service(url, client.get_json(url, patience=FIRST_CONTACT.patience))
        self._places = [_band(item, band) for band in bands]
        self._options = {key: item.options[key] for key in ("layers", "time") if item.options.get(key)}
        crs_wkt = item.crs_wkt or service.crs.to_wkt()
        tiles = None if self._options else service.tiles
        level = _level(service, tiles, grid, item.options.get("level")) if tiles is not None else None
        self._reference = service.reference
        if tiles is not None and level is not None:
            cut, side = _TileCut(tiles, level, service), tiles.rows
            self._grid = TargetGrid(cut.width, cut.height, cut.transform, crs_wkt)
            self._blocks = BlockCache(cut.width, cut.height, side, lambda window: self._tile(cut, window))
        else:
            self._grid = _drawn_grid(service, grid, crs_wkt)
            check_straight(self._grid, url)
            if grid.target is not None and CRS.from_wkt(grid.target.crs_wkt) != service.crs:
                self._reference = reference_of(CRS.from_wkt(grid.target.crs_wkt))
            side = min(_BLOCK, *service.most_pixels)
            self._blocks = BlockCache(
                self._grid.width, self._grid.height, side, lambda part: self._draw(self._grid, part)
            )
        self._level, self._tiles = level, (tiles if level is not None else None)
        self._info = RasterInfo(
            self._grid.width, self._grid.height, len(bands), "uint8", self._grid.transform, crs_wkt, side
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
        """Give the 1-based numbers of the bands that are read."""
        return tuple(place + 1 for place in self._places)

    @property
    def has_palette(self) -> bool:
        """A picture has colours, no table of them."""
        return False

    @property
    def nodata(self) -> float | None:
        """No value stands for no data: it is transparent."""
        return None

    def read(self, window: Window) -> Pixels:
        """Read a window that lies inside, see `PixelSource.read`."""
        with refusals_told(self.name, window):
            return self._blocks.read(window)

    def sample(self) -> list[NDArray[Any]]:
        """Give values of each band from a coarse picture of everything, or from tiles that are spread over it."""
        with refusals_told(self.name):
            pixels, present = self._overview(_SAMPLE_SIDE)
        return [band[valid] for band, valid in zip(pixels, present)]

    def identity(self) -> list[Any] | None:
        """Give address, extent and level, and a hash of a coarse picture: a service has no date of change."""
        level = None if self._level is None else self._level.number
        digest = picture_hash(lambda: self._overview(_IDENTITY_SIDE))
        return [self._service.url, list(self._service.extent), level, self._options, digest]

    def close(self) -> None:
        """Let go of what was read."""
        self._blocks.close()

    def _overview(self, side: int) -> Pixels:
        """Give a coarse picture of everything."""
        if self._tiles is not None:
            return self._coarse_tiles(self._tiles, side)
        small = coarser(self._grid, min(side, *self._service.most_pixels))
        return self._draw(small, Window(0, 0, small.width, small.height))

    def _coarse_tiles(self, scheme: TileScheme, side: int) -> Pixels:
        """Give the finest level that is no larger than this, in one row; of a larger one tiles spread over it."""
        cuts = [_TileCut(scheme, level, self._service) for level in scheme.levels]
        small = [cut for cut in cuts if max(cut.width, cut.height) <= side]
        cut = small[-1] if small else cuts[0]
        whole, steps = Window(0, 0, cut.width, cut.height), max(1, side // scheme.rows)
        parts = [self._tile(cut, window) for window in _spread(whole, scheme.rows, steps)]
        n_bands = len(self._places)
        pixels = np.concatenate([part.reshape(n_bands, 1, -1) for part, _ in parts], axis=2)
        return pixels, np.concatenate([valid.reshape(n_bands, 1, -1) for _, valid in parts], axis=2)

    def _draw(self, grid: TargetGrid, window: Window) -> Pixels:
        """Let the server draw a window of a grid."""
        found: list[Picture] = []
        self._client.get(
            f"{self._service.url}/export",
            {
                "f": "image",
                "format": "png32",
                "transparent": "true",
                "dpi": 96,
                "bbox": bbox_of(grid.transform, window),
                "size": f"{window.width},{window.height}",
                "bboxSR": self._reference,
                "imageSR": self._reference,
                **self._options,
            },
            max_bytes=_MAX_REPLY,
            accept=picture_taker(window.width, window.height, found),
        )
        return self._bands_of(found[0])

    def _tile(self, cut: _TileCut, window: Window) -> Pixels:
        """Get the tile that fills a block."""
        row, column = cut.tile_at(window)
        scheme, found = cut.scheme, []

        def accept(reply: Reply) -> None:
            if reply.status != 404 and reply.content:
                found.append(decode(reply))

        self._client.get(
            f"{self._service.url}/tile/{cut.level.number}/{row}/{column}",
            {"blankTile": "false"},  # where there is none, none: not one that says so in letters
            max_bytes=_MAX_REPLY,
            accept=accept,
            missing=True,
        )
        shape = (len(self._places), window.height, window.width)
        if not found:
            return np.zeros(shape, np.uint8), np.zeros(shape, np.bool_)
        pixels, present = self._bands_of(found[-1])
        if pixels.shape[1:] != (scheme.rows, scheme.columns):
            raise ServiceError(f"The server sent a tile of {pixels.shape[2]} x {pixels.shape[1]} pixels.")
        return pixels[:, : window.height, : window.width], present[:, : window.height, : window.width]

    def _bands_of(self, picture: Picture) -> Pixels:
        """Give the wanted ones of red, green and blue."""
        pixels, present = picture.pixels, picture.present
        if picture.colors is not None:
            pixels = picture.colors[:, np.clip(pixels[0], 0, picture.colors.shape[1] - 1)]
        if len(pixels) < 3:
            pixels = np.repeat(pixels[:1], 3, axis=0)
        if len(present) != len(pixels):
            present = np.repeat(present[:1], len(pixels), axis=0)
        if pixels.dtype != np.uint8:
            raise ServiceError(f"The server sent a picture of {pixels.dtype}.")
        return pixels[self._places], present[self._places]


class _TileCut:
    """The part of a cache's level that the service's extent covers, cut at tiles.

    Units/space: `transform` takes pixels of the part to the map.
    """

    def __init__(self, scheme: TileScheme, level: Level, service: Service) -> None:
        self.scheme, self.level = scheme, level
        (left, top), side = scheme.origin, level.resolution
        xmin, ymin, xmax, ymax = service.extent
        tile = side * scheme.columns
        self._column, self._row = (max(0, math.floor(value / tile)) for value in (xmin - left, top - ymax))
        self.transform = Affine(side, 0, left + self._column * tile, 0, -side, top - self._row * tile)
        self.width = max(1, math.ceil((xmax - self.transform.c) / side - 1e-6))
        self.height = max(1, math.ceil((self.transform.f - ymin) / side - 1e-6))

    def tile_at(self, window: Window) -> tuple[int, int]:
        """Give row and column of the tile in which a block of the part lies."""
        return self._row + window.y // self.scheme.rows, self._column + window.x // self.scheme.columns


def _level(service: Service, tiles: TileScheme, grid: GridRequest, wanted: Any) -> Level | None:
    """Give the level to read; None where the service is to draw instead.

    Raises:
        RasterOpenError: there is no such level, or its tiles cannot be read.
    """
    if tiles.rows != tiles.columns or tiles.format.upper().startswith("LERC"):
        if service.only_tiles:
            raise RasterOpenError(
                f"The tiles of the service '{service.url}' are of the kind '{tiles.format}', which cannot be read.",
                hint="Ask its owner to publish it as a dynamic image service.",
            )
        return None
    if wanted is not None:
        named = [level for level in tiles.levels if level.number == wanted]
        if not named:
            numbers = ", ".join(str(level.number) for level in tiles.levels)
            raise RasterOpenError(f"The service '{service.url}' has no level {wanted!r}; it has {numbers}.")
        return named[0]
    if grid.target is not None:
        if service.only_tiles:
            raise RasterOpenError(
                f"The service '{service.url}' hands out tiles alone, which do not fit the grid of other rasters.",
                hint="Search it by itself, or choose processing item by item.",
            )
        return None
    if grid.cell_size is None:
        return tiles.levels[-1]
    nearest = min(tiles.levels, key=lambda level: abs(math.log(level.resolution / float(grid.cell_size or 1))))
    fits = abs(nearest.resolution - grid.cell_size) <= _SAME_SIZE * grid.cell_size
    return nearest if fits or service.only_tiles else None


def _drawn_grid(service: Service, grid: GridRequest, crs_wkt: str) -> TargetGrid:
    """Give the grid for a service that draws.

    Raises:
        RasterOpenError: no cell size is given.
    """
    if grid.target is not None:
        return grid.target
    xmin, ymin, xmax, ymax = service.extent
    if grid.is_look and grid.cell_size is None:
        sides = (xmax - xmin) / _LOOK_SIDE, (ymax - ymin) / _LOOK_SIDE
        return TargetGrid(_LOOK_SIDE, _LOOK_SIDE, Affine(sides[0], 0, xmin, 0, -sides[1], ymax), crs_wkt)
    if grid.cell_size is None:
        raise RasterOpenError(
            f"The map service '{service.url}' is drawn at any size and has no pixels of its own.",
            hint="Give a cell size, the one that the model was trained at for example.",
        )
    side = grid.cell_size
    width, height = max(1, math.ceil((xmax - xmin) / side - 1e-6)), max(1, math.ceil((ymax - ymin) / side - 1e-6))
    return wanted_grid(Affine(side, 0, xmin, 0, -side, ymax), width, height, crs_wkt, grid)


def _band(item: RasterItem, band: int | str) -> int:
    place = _BANDS.get(band.lower() if isinstance(band, str) else band)
    if place is None:
        raise ModelIncompatibleError(
            f"The model needs the band {band!r}, and the map service '{item.shown}' shows red, green and blue."
        )
    return place


def _spread(whole: Window, side: int, steps: int) -> list[Window]:
    """Give windows of one tile each, spread over everything, the same each time."""
    rows, columns = -(-whole.height // side), -(-whole.width // side)
    picked = [(row, column) for row in _picks(rows, steps) for column in _picks(columns, steps)]
    return [Window(column * side, row * side, side, side).intersect(whole) for row, column in picked]


def _picks(count: int, steps: int) -> list[int]:
    return sorted({round((count - 1) * step / max(steps - 1, 1)) for step in range(steps)})
