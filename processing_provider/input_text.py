"""INPUT_SOURCE: the words in which a raster can be named besides a layer -> what GDAL calls them."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osgeo import gdal

from ..inference.errors import JobError, RasterOpenError

_FORMS = (("itemId", "itemIds"), ("url", "urls"), ("uri", "uris"))
"""Members of a JSON object that name rasters: the first kind that is there wins."""
_CLOUDS = {"s3": "/vsis3/", "gs": "/vsigs/", "az": "/vsiaz/", "azure": "/vsiaz/", "abfs": "/vsiadls/"}
_NETWORK = re.compile(
    r"/vsi(curl|s3|gs|az|adls|oss|swift|hdfs|webhdfs)(_streaming)?[/?]|[a-z0-9+.-]+://", re.IGNORECASE
)
_NO_PICTURES = {"VRT", "GPKG", "PDF", "MBTiles", "SQLite", "HTTP", "DERIVED", "XYZ"}
"""Drivers whose files are passed over in a folder: they hold or refer to what lies there anyway, or are no images."""

_IMAGES = {
    ".tif",
    ".tiff",
    ".jp2",
    ".j2k",
    ".jpg",
    ".jpeg",
    ".png",
    ".img",
    ".ecw",
    ".sid",
    ".bil",
    ".bip",
    ".bmp",
    ".gif",
}


def is_remote(name: str) -> bool:
    """Tell whether a raster lies behind a network."""
    return _NETWORK.search(name) is not None


def sources_in(text: str) -> list[str]:
    """Read INPUT_SOURCE.

    Args:
        text: A path, a folder, a pattern, an address, one of GDAL's names, a JSON list of such, or the operation's
            JSON object with itemId, url or uri.

    Returns:
        Names that GDAL opens, in order.

    Raises:
        JobError: it cannot be understood.
        RasterOpenError: there is nothing of that name.
    """
    return [name for part in _parts(text) for name in _named(part)]


def _parts(text: str) -> list[str]:
    if text[:1] not in "{[":
        return [text]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise JobError(
            f"The input source is not valid JSON: {error}.", hint='Write for example {"uri": "C:/images/a.tif"}.'
        ) from error
    return [part for entry in (value if isinstance(value, list) else [value]) for part in _of_entry(entry)]


def _of_entry(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry.strip()]
    if not isinstance(entry, Mapping):
        raise JobError("The input source holds something that is neither a text nor a JSON object.")
    for one, several in _FORMS:
        given = [entry[name] for name in (one, several) if entry.get(name)]
        if not given:
            continue
        values = [value for part in given for value in (part if isinstance(part, list) else [part])]
        if not all(isinstance(value, str) for value in values):
            raise JobError(f"The member '{one}' of the input source is not a text.")
        return [f"itemId:{value.strip()}" if one == "itemId" else value.strip() for value in values]
    raise JobError(
        f"The input source names no raster; its members are: {', '.join(map(str, entry)) or 'none'}.",
        hint="Give itemId, url or uri, or a list: itemIds, urls, uris.",
    )


def _named(text: str) -> list[str]:
    """Give what a text means to GDAL."""
    if text.startswith("<"):
        raise RasterOpenError("A raster given as XML text is not opened.", hint="Save it as a .vrt file first.")
    scheme, _, rest = text.partition("://")
    if rest and scheme.lower() in ("http", "https"):
        return [f"/vsicurl/{text}"]
    if rest and scheme.lower() in _CLOUDS:
        return [_CLOUDS[scheme.lower()] + rest]
    if text.startswith("/vsi"):
        return [text]
    path = Path(rest if scheme.lower() == "file" and rest else text).expanduser()
    if path.is_dir() and gdal.IdentifyDriverEx(str(path), gdal.OF_RASTER) is None:
        return _in_folder(path)
    if not path.exists() and glob.has_magic(text):
        return _matching(text)
    if path.exists() or not re.match(r"\w{2,}:", text):
        return [str(path.absolute())]
    return [text]  # a name with a driver in front: NETCDF:..., GPKG:...


def _in_folder(folder: Path) -> list[str]:
    """Give the images in a folder, by name; folders in it are not looked into."""
    names = sorted(entry.path for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    images = [name for name in names if _is_image(name)]
    if not images:
        raise RasterOpenError(f"The folder '{folder}' holds no image that GDAL knows.")
    return [str(Path(name).absolute()) for name in images]


def _matching(pattern: str) -> list[str]:
    names = sorted(glob.glob(str(Path(pattern).expanduser())))  # noqa: PTH207  # the pattern may begin with a drive
    images = [name for name in names if Path(name).is_file() and _is_image(name)]
    if not images:
        raise RasterOpenError(f"No image fits the pattern '{pattern}'.")
    return [str(Path(name).absolute()) for name in images]


def _is_image(name: str) -> bool:
    suffix = Path(name).suffix.lower()
    if suffix in (".xml", ".ovr", ".msk"):
        return False
    if suffix in _IMAGES:
        return True  # a damaged one, too: it is named in a message
    driver = gdal.IdentifyDriverEx(name, gdal.OF_RASTER)
    return driver is not None and driver.ShortName not in _NO_PICTURES
