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

from ..inference.errors import CredentialError, JobError, RasterOpenError
from ..inference.net.addresses import check_given
from ..inference.net.portal import Reference, references
from .server_source import RULES, SERVICE, ServerSource

_NAMES = ("itemId", "itemIds", "url", "urls", "uri", "uris")
_UNHEARD = ("tiled_url",)
"""Members that clients send beside others, and that say nothing new."""
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


def sources_in(text: str, portal: str = "") -> list[str | ServerSource]:
    """Read INPUT_SOURCE.

    Args:
        text: A path, a folder, a pattern, an address, one of GDAL's names, a JSON list of such, or the operation's
            JSON object with itemId, url or uri.
        portal: Where items are that name none.

    Returns:
        Names that GDAL opens, and what a server has to be asked for, in order.

    Raises:
        JobError: it cannot be understood.
        RasterOpenError: there is nothing of that name.
        CredentialError: it holds a secret.
        ServiceError: an address cannot be asked.
    """
    return [source for entry in _entries(text) for source in _of_entry(entry, portal)]


def _entries(text: str) -> list[Any]:
    if text[:1] not in "{[":
        return [text]
    try:
        value = json.loads(text)
    except ValueError as error:
        raise JobError(
            f"The input source is not valid JSON: {error}.", hint='Write for example {"uri": "C:/images/a.tif"}.'
        ) from error
    return value if isinstance(value, list) else [value]


def _of_entry(entry: Any, portal: str) -> list[str | ServerSource]:
    if isinstance(entry, str):
        kind = "url" if re.match(r"https?://", entry.strip(), re.IGNORECASE) else "uri"
        return _of_reference(references({kind: entry.strip()}, portal)[0], {})
    if not isinstance(entry, Mapping):
        raise JobError("The input source holds something that is neither a text nor a JSON object.")
    if "serviceToken" in entry:
        raise CredentialError(
            "The input source holds a token, which histories and logs would keep.",
            hint="Take it out, and choose an authentication configuration of QGIS as AUTHENTICATION.",
        )
    unknown = sorted(map(str, set(entry) - {*_NAMES, *RULES, *_UNHEARD}))
    if unknown:
        raise JobError(
            f"The input source has members that Kestrel does not know: {', '.join(unknown)}.",
            hint=f"It knows {', '.join((*_NAMES, *RULES))}.",
        )
    options = {key: entry[key] for key in RULES if entry.get(key) not in (None, "", {})}
    return [source for reference in references(entry, portal) for source in _of_reference(reference, options)]


def _of_reference(reference: Reference, options: Mapping[str, Any]) -> list[str | ServerSource]:
    if reference.kind == "item":
        return [ServerSource(reference, options=options)]
    match = SERVICE.fullmatch(reference.value)
    if match is not None:
        check_given(reference.value)
        return [ServerSource(Reference("url", match[1]), options=options)]
    if re.search(r"/FeatureServer(/\d+)?/?(\?.*)?$", reference.value, re.IGNORECASE):
        raise JobError(
            f"'{reference.value.split('?')[0]}' is a feature service: Kestrel does not search the pictures attached to "
            "its features.",
            hint="Download the pictures into a folder, and give that.",
        )
    if options:
        raise JobError(f"{', '.join(options)} can be given for image services only.")
    return list(_named(reference.value))


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
