"""What an ArcGIS server says of one of its services, read from its JSON: image services and map services.

Source: ArcGIS REST API, "Image service" and "Map service" resources.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError

from ..errors import RasterOpenError
from ..job import RasterItem
from ..tiling import Window
from .source import TargetGrid

_SERVICE = re.compile(r"(https?://.+?/(ImageServer|MapServer))(?:[/?#].*)?", re.IGNORECASE)

PIXEL_TYPES = {
    "U1": "uint8", "U2": "uint8", "U4": "uint8", "U8": "uint8", "S8": "int8", "U16": "uint16", "S16": "int16",
    "U32": "uint32", "S32": "int32", "F32": "float32", "F64": "float64",
}  # fmt: skip
"""ArcGIS's pixel types -> numpy's; bits are sent as bytes."""

_DEFAULT_SIDE = 1024
_NEAR = 0.01
"""Share of a pixel by which an extent may miss a whole number of them."""


@dataclass(frozen=True)
class Level:
    """One level of detail of a tile cache; `resolution` is a pixel's side in map units."""

    number: int
    resolution: float


@dataclass(frozen=True)
class TileScheme:
    """The tiles of a cache.

    Units/space: origin, the upper left corner of tile 0, 0, in map units; rows and columns of a tile in pixels.
    """

    rows: int
    columns: int
    origin: tuple[float, float]
    levels: tuple[Level, ...]
    format: str


@dataclass(frozen=True)
class Service:
    """An image or map service.

    Attributes:
        url: Its address, ending in /ImageServer or /MapServer.
        is_image: It is an image service, which has pixel values.
        data: The whole JSON of the service.
        crs: Its coordinate reference system.
        reference: The same as ArcGIS writes it, for bboxSR and imageSR.
        extent: xmin, ymin, xmax, ymax.
    """

    url: str
    is_image: bool
    data: Mapping[str, Any]
    crs: CRS
    reference: str
    extent: tuple[float, float, float, float]

    @property
    def most_pixels(self) -> tuple[int, int]:
        """Give the largest width and height of one answer."""
        sizes = [self.data.get(key) for key in ("maxImageWidth", "maxImageHeight")]
        width, height = (size if isinstance(size, int) and size > 0 else _DEFAULT_SIDE for size in sizes)
        return width, height

    @property
    def only_tiles(self) -> bool:
        """Tell whether it draws nothing, and hands out the tiles of its cache alone."""
        words = str(self.data.get("capabilities", "")).lower().split(",")
        return "tilesonly" in words

    @property
    def tiles(self) -> TileScheme | None:
        """Give its tile cache."""
        info = self.data.get("tileInfo")
        if not isinstance(info, dict) or not (self.data.get("singleFusedMapCache") or self.only_tiles):
            return None
        origin = info.get("origin") or {}
        levels = [
            Level(int(level["level"]), float(level["resolution"]))
            for level in info.get("lods") or []
            if _number(level.get("resolution")) and isinstance(level.get("level"), int)
        ]
        rows, columns = info.get("rows"), info.get("cols")
        corner = _number(origin.get("x")), _number(origin.get("y"))
        if not levels or not isinstance(rows, int) or not isinstance(columns, int) or None in corner:
            return None
        levels.sort(key=lambda level: -level.resolution)
        return TileScheme(rows, columns, (corner[0] or 0.0, corner[1] or 0.0), tuple(levels), str(info.get("format")))


def service_url(item: RasterItem) -> str:
    """Give the address of an item's service, without what follows /ImageServer or /MapServer.

    Raises:
        RasterOpenError: it is no such address.
    """
    match = _SERVICE.fullmatch(item.source.strip())
    if match is None:
        raise RasterOpenError(
            f"'{item.shown}' is not the address of an ArcGIS image or map service.",
            hint="It begins with https:// and ends with /ImageServer or /MapServer.",
        )
    return match[1]


def read_service(url: str, data: Mapping[str, Any]) -> Service:
    """Understand the JSON of a service.

    Raises:
        RasterOpenError: it lacks what reading needs.
    """
    is_image = url.lower().endswith("/imageserver")
    extent = _extent(data.get("fullExtent")) or _extent(data.get("extent")) or _extent(data.get("initialExtent"))
    if extent is None:
        raise RasterOpenError(f"The service '{url}' does not say where on the map it lies.")
    place = data.get("fullExtent") or data.get("extent") or data.get("initialExtent") or {}
    reference = data.get("spatialReference") or place.get("spatialReference") or {}
    crs = crs_of(reference)
    if crs is None:
        raise RasterOpenError(
            f"The coordinate reference system of the service '{url}' is not known here.",
            hint="Pictures in a camera's own pixel space cannot be searched on the map.",
        )
    return Service(url, is_image, data, crs, reference_text(reference), extent)


def crs_of(reference: Any) -> CRS | None:
    """Give the coordinate reference system that ArcGIS names, by number or text; None where it is not known."""
    if not isinstance(reference, dict):
        return None
    numbers = [reference.get(key) for key in ("latestWkid", "wkid")]
    names = [f"{authority}:{n}" for n in numbers if isinstance(n, int) for authority in ("EPSG", "ESRI")]
    texts = [reference.get(key) for key in ("wkt2", "wkt")]
    found = (_crs(name) for name in [*names, *(text for text in texts if isinstance(text, str) and text)])
    return next((crs for crs in found if crs is not None), None)


def _crs(name: str) -> CRS | None:
    try:
        return CRS.from_user_input(name)
    except CRSError:
        return None


def reference_text(reference: Mapping[str, Any]) -> str:
    """Write a service's own spatial reference as a parameter."""
    for key in ("wkid", "latestWkid"):
        if isinstance(reference.get(key), int):
            return str(reference[key])
    return json.dumps({key: reference[key] for key in ("wkt", "wkt2") if reference.get(key)})


def reference_of(crs: CRS) -> str:
    """Write a coordinate reference system as a parameter: by number where it has one.

    Raises:
        RasterOpenError: ArcGIS has no words for it.
    """
    number = crs.to_epsg()
    if number is not None:
        return str(number)
    try:
        return json.dumps({"wkt": crs.to_wkt(version="WKT1_ESRI")})
    except CRSError as error:
        raise RasterOpenError("The service cannot be asked for pixels in that coordinate reference system.") from error


def native_grid(service: Service, extent: Sequence[float] | None = None) -> TargetGrid:
    """Give an image service's own grid of pixels.

    Args:
        service: The service.
        extent: xmin, ymin, xmax, ymax of the part that counts; None: all.

    Raises:
        RasterOpenError: it does not say how large its pixels are, or there is nothing in the extent.
    """
    xmin, ymin, xmax, ymax = service.extent
    sizes = [_number(service.data.get(key)) for key in ("pixelSizeX", "pixelSizeY")]
    sides = [side for side in sizes if side is not None and side > 0]
    if len(sides) != 2:
        raise RasterOpenError(f"The service '{service.url}' does not say how large its pixels are.")
    width, across = _whole(xmax - xmin, sides[0])
    height, down = _whole(ymax - ymin, sides[1])
    grid = TargetGrid(width, height, Affine(across, 0, xmin, 0, -down, ymax), service.crs.to_wkt())
    return grid if extent is None else _cropped(grid, extent, service)


def _cropped(grid: TargetGrid, extent: Sequence[float], service: Service) -> TargetGrid:
    """Give the pixels of a grid that touch an extent."""
    t, (xmin, ymin, xmax, ymax) = grid.transform, extent
    left, right = math.floor((xmin - t.c) / t.a + _NEAR), math.ceil((xmax - t.c) / t.a - _NEAR)
    top, bottom = math.floor((ymax - t.f) / t.e + _NEAR), math.ceil((ymin - t.f) / t.e - _NEAR)
    part = Window(left, top, right - left, bottom - top).intersect(Window(0, 0, grid.width, grid.height))
    if part.width == 0 or part.height == 0:
        raise RasterOpenError(f"The service '{service.url}' has no pixels in the extent {list(extent)}.")
    return TargetGrid(part.width, part.height, t * Affine.translation(part.x, part.y), grid.crs_wkt)


def _whole(length: float, side: float) -> tuple[int, float]:
    """Give the pixels of a length, and their side: exact where a stated, rounded side nearly fits."""
    count = length / side
    nearest = max(1, round(count))
    if abs(count - nearest) <= _NEAR:
        return nearest, length / nearest
    return math.ceil(count), side


def bbox_of(transform: Affine, window: Window) -> str:
    """Write a window of a grid as a parameter, each number exact."""
    xmin, ymax = transform * (window.x, window.y)
    xmax, ymin = transform * (window.right, window.bottom)
    return ",".join(f"{value:.17g}" for value in (xmin, ymin, xmax, ymax))


def coarser(grid: TargetGrid, side: int) -> TargetGrid:
    """Give a grid over the same area with at most so many pixels on its longer side."""
    factor = max(1.0, max(grid.width, grid.height) / side)
    width, height = max(1, round(grid.width / factor)), max(1, round(grid.height / factor))
    scale = Affine.scale(grid.width / width, grid.height / height)
    return TargetGrid(width, height, grid.transform * scale, grid.crs_wkt)


def check_straight(grid: TargetGrid, url: str) -> None:
    """Look at a grid that a server is to be asked for.

    Raises:
        RasterOpenError: its rows do not run from west to east, from north to south.
    """
    t = grid.transform
    if not (math.isclose(t.b, 0, abs_tol=1e-12) and math.isclose(t.d, 0, abs_tol=1e-12) and t.a > 0 > t.e):
        raise RasterOpenError(
            f"The service '{url}' cannot be read on a grid that is rotated or mirrored.",
            hint="Give a raster whose rows run from west to east first.",
        )


def band_names(data: Mapping[str, Any], properties: Mapping[str, Any]) -> list[str]:
    """Give the names of an image service's bands, '' where one has none.

    Args:
        data: The service's JSON.
        properties: Its key properties, or nothing.
    """
    count = data.get("bandCount") if isinstance(data.get("bandCount"), int) else 0
    stated = data.get("bandNames")
    if not _are_texts(stated):
        listed = properties.get("BandProperties")
        entries = listed if isinstance(listed, list) else []
        stated = [str(entry.get("BandName") or "") for entry in entries if isinstance(entry, dict)]
    names = [str(name) for name in stated or []]
    return names if len(names) == count else [""] * int(count or 0)


def _are_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(entry, str) for entry in value)


def nodata_values(data: Mapping[str, Any]) -> list[float]:
    """Give the values that stand for no data: one for all bands, one a band, or none at all."""
    stated = data.get("noDataValues")
    listed = stated if isinstance(stated, list) and stated else [data.get("noDataValue")]
    values = [_number(value) for value in listed]
    return [] if any(value is None for value in values) else [value for value in values if value is not None]


def _extent(value: Any) -> tuple[float, float, float, float] | None:
    if not isinstance(value, dict):
        return None
    numbers = [_number(value.get(key)) for key in ("xmin", "ymin", "xmax", "ymax")]
    known = [number for number in numbers if number is not None]
    if len(known) != 4 or not (known[0] < known[2] and known[1] < known[3]):
        return None
    return known[0], known[1], known[2], known[3]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None  # ArcGIS writes "NaN" as a text
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
