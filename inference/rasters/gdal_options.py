"""What GDAL is told for one raster: its settings, time limits, what signs in, and the names that it opens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rasterio import Env
from rasterio.session import Session

from ..errors import RasterOpenError
from ..job import RasterItem
from ..net.limits import HttpLimits
from ..secrets import Secrets
from .remote_files import CURL

_CLOUD = re.compile(r"/vsi(?:s3|gs|az|adls|oss|swift|hdfs|webhdfs|curl)(?:_streaming)?[/?][^/]*")
_STORE_OPTION = re.compile(r"(AWS|GS|GOOGLE|AZURE|OSS|SWIFT|OS|CPL_GS|CPL_AZURE)_[A-Z0-9_]+")
_LONGEST_STALL = 20.0
"""Seconds; GDAL asks for the other parts of a window all the same, one after the other."""
_VRT_SIZE = 64 * 2**20


class _Given(Session):  # type: ignore[misc]
    """Options that sign in. rasterio takes those of AWS from such an object alone."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = dict(options)

    def get_credential_options(self) -> dict[str, str]:
        """Give them."""
        return self._options


def environment(settings: Mapping[str, Any], secret: Mapping[str, str]) -> Env:
    """Give what GDAL is to be called in. In threads other than the main one nobody else sees it."""
    return Env(session=_Given(secret), **settings)


def settings_for(item: RasterItem, limits: HttpLimits) -> dict[str, Any]:
    """Give the configuration of GDAL for a raster: what is always set, and what the layer in QGIS has set."""
    given = item.options.get("config_options", {})
    chosen = {name: str(value) for name, value in given.items() if _STORE_OPTION.fullmatch(name)}
    return {
        **chosen,
        "GDAL_VRT_ENABLE_PYTHON": "NO",
        "GDAL_HTTP_CONNECTTIMEOUT": _seconds(limits.connect),
        "GDAL_HTTP_TIMEOUT": _seconds(limits.total),
        "GDAL_HTTP_LOW_SPEED_TIME": _seconds(min(limits.read, _LONGEST_STALL)),
        "GDAL_HTTP_LOW_SPEED_LIMIT": "100",
        "GDAL_HTTP_UNSAFESSL": "NO",
        "GDAL_HTTP_NETRC": "NO",
    }


def _seconds(value: float) -> str:
    return str(max(1, round(value)))


def secret_for(item: RasterItem, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Give the options that sign in for a raster's path: of the prefixes that fit, a longer one overrules.

    Others than those of object stores are left out: what signs in must not set anything else.
    """
    found: dict[str, str] = {}
    for prefix in sorted(secrets, key=len):
        if item.source.startswith(prefix):
            found.update(secrets[prefix])
    return {name: value for name, value in found.items() if _STORE_OPTION.fullmatch(name)}


def network_options(secrets: Secrets) -> dict[str, str]:
    """Give the options with which GDAL itself reaches servers: QGIS's proxy, and the certificates that it trusts."""
    proxies = {f"GDAL_{scheme.upper()}_PROXY": url for scheme, url in secrets.proxies.items() if scheme != "no_proxy"}
    return {**proxies, **({"CURL_CA_BUNDLE": secrets.ca_file} if secrets.ca_file else {})}


def check_typed(source: str) -> None:
    """Refuse a connection string that is a program, or a file that nobody has chosen.

    Raises:
        RasterOpenError: it is one.
    """
    if "<" in source and ">" in source:  # GDAL finds XML anywhere in a name
        raise RasterOpenError("A raster given as XML text is not opened.", hint="Save it as a .vrt file first.")
    if "/vsicurl?" in source or "/vsistdin" in source:  # the first may switch off the check of certificates
        raise RasterOpenError(
            "A raster's name that sets how GDAL reads from the web is not opened.",
            hint="Write /vsicurl/ and its address.",
        )


def gdal_name(source: str) -> str:
    """Give GDAL's name of a source; of a bare URL the one for reading parts of it."""
    return CURL + source if source.startswith(("http://", "https://")) else source


def is_on_web(name: str) -> bool:
    """Tell whether a source is read through Kestrel's own HTTP: it lies on a web server, or a mosaic refers to one."""
    if f"{CURL}http" in name:
        return True
    if name.startswith("/vsi") or not name.lower().endswith(".vrt"):
        return False
    path = Path(name)
    return path.is_file() and path.stat().st_size <= _VRT_SIZE and f"{CURL}http".encode() in path.read_bytes()


def is_in_cloud(name: str) -> bool:
    """Tell whether GDAL itself reads a source over the network."""
    return bool(_CLOUD.search(name))


def bucket_of(name: str) -> str:
    """Give the beginning that the names of a store's files have for GDAL: its file system, and bucket or host."""
    found = _CLOUD.search(name)
    return found[0] if found else name
