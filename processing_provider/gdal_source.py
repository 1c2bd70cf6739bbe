"""What QGIS's source of a GDAL layer says: a name for GDAL, options, and what signs in."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osgeo import gdal
from qgis.core import QgsProviderRegistry

from ..inference.errors import CredentialError, RasterOpenError
from .credentials import signature
from .text import without_secrets

EXPORT = "Save it as a file first: layer menu > Export > Save As, as raw data in GeoTIFF form."

_AUTHCFG = re.compile(r"\s+authcfg='?([A-Za-z0-9]{7})'?\s*$")
_ADDRESS = re.compile(r"/vsicurl/(https?://.+)")
_SIGNED = re.compile(r"(/vsicurl/https?://[^?]+)\?([^?]*(?:sig|signature|token|key|credential|code)=.*)", re.IGNORECASE)
"""An address whose query signs in, as object stores make them for a time."""
_CREDENTIAL = re.compile(r"(AWS|GS|GOOGLE|AZURE|OSS|SWIFT|OS|CPL_GS|CPL_AZURE)_[A-Z0-9_]+")
"""Names of GDAL's options of object stores."""
_PUBLIC = frozenset(
    """
    AWS_REGION AWS_DEFAULT_REGION AWS_S3_ENDPOINT AWS_HTTPS AWS_VIRTUAL_HOSTING AWS_NO_SIGN_REQUEST AWS_REQUEST_PAYER
    GS_NO_SIGN_REQUEST GS_USER_PROJECT CPL_GS_ENDPOINT AZURE_NO_SIGN_REQUEST AZURE_STORAGE_ACCOUNT OSS_ENDPOINT
    """.split()
)
"""Those of them that are no secret, and part of the job."""
_STORES = {
    "s3": "s3.amazonaws.com",
    "gs": "storage.googleapis.com",
    "az": "blob.core.windows.net",
    "adls": "dfs.core.windows.net",
}
_BEARER_SINCE = 3_090_000
"""GDAL's version that knows the sign-in by token. Source: GDAL's documentation of GDAL_HTTP_AUTH."""
_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_LOOK_LIMITS = {"GDAL_HTTP_CONNECTTIMEOUT": "10", "GDAL_HTTP_TIMEOUT": "30", "GDAL_VRT_ENABLE_PYTHON": "NO"}
"""For a look at a raster in QGIS's own process; somebody waits for it."""


@dataclass(frozen=True)
class GdalSource:
    """A raster that GDAL opens, as plain values that any thread may use.

    Attributes:
        connection: What GDAL calls it.
        open_options: Of the driver.
        config: Options of the object store that are no secret.
        secret: Options of the object store that are.
        authcfg: Id of the authentication configuration that signs in to its web server; empty: none.
        query: What stands behind the address's question mark, where that signs in.
    """

    connection: str
    open_options: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    authcfg: str = ""
    query: str = field(default="", repr=False)

    @property
    def look(self) -> str:
        """Give what GDAL opens in this process."""
        return f"{self.connection}?{self.query}" if self.query else self.connection

    @property
    def address(self) -> str:
        """Give its address on a web server; empty where it lies elsewhere."""
        found = _ADDRESS.search(self.connection)
        return found[1] if found else ""

    @property
    def store(self) -> str:
        """Give the address of the object store that it lies in, for the choice of a proxy; empty: in none."""
        kind = re.search(r"/vsi(s3|gs|az|adls)/", self.connection)
        if kind is None:
            return ""
        given = self.config.get("AWS_S3_ENDPOINT" if kind[1] == "s3" else "CPL_GS_ENDPOINT", "")
        return given if "://" in given else f"https://{given or _STORES[kind[1]]}"

    @property
    def item_options(self) -> dict[str, Any]:
        """Give the options of a job's raster, see gdal_options.py."""
        options = {"open_options": dict(self.open_options), "config_options": dict(self.config)}
        return {name: values for name, values in options.items() if values}


def gdal_source(source: str) -> GdalSource:
    """Read the source of a layer of the provider gdal.

    Raises:
        RasterOpenError: it holds something that cannot be handed on to the worker.
    """
    if re.search(r"\bpassword=", source):
        raise RasterOpenError("The raster needs credentials, which are not handed on to other programs.", hint=EXPORT)
    signs = _AUTHCFG.search(source)
    if signs is not None:
        source = source[: signs.start()]
    elif "authcfg=" in source:
        raise RasterOpenError("The raster's authentication configuration is not understood.", hint=EXPORT)
    parts = QgsProviderRegistry.instance().decodeUri("gdal", source)
    given = {str(name).upper(): str(value) for name, value in (parts.get("credentialOptions") or {}).items()}
    unknown = sorted(name for name in given if not _CREDENTIAL.fullmatch(name))
    if unknown:
        raise RasterOpenError(
            f"The raster layer has the GDAL option {', '.join(unknown)}, which is not handed on.",
            hint="Add the layer again without it.",
        )
    connection = _connection(parts)
    signed = _SIGNED.fullmatch(connection)
    found = GdalSource(
        signed[1] if signed else connection,
        _open_options(parts.get("openOptions") or []),
        {name: value for name, value in given.items() if name in _PUBLIC},
        {name: value for name, value in given.items() if name not in _PUBLIC},
        signs[1] if signs else "",
        signed[2] if signed else "",
    )
    if found.authcfg and not found.address:
        raise RasterOpenError(
            "The raster has an authentication configuration, and does not lie on a web server.", hint=EXPORT
        )
    return found


def _connection(parts: Mapping[str, Any]) -> str:
    path = parts.get("path") or ""
    if not path.startswith("<") and Path(path).exists():
        # The worker has a working directory of its own.
        path = str(Path(path).absolute())
    path = (parts.get("vsiPrefix") or "") + path + (parts.get("vsiSuffix") or "")
    if path.startswith(("http://", "https://")):
        path = f"/vsicurl/{path}"
    if parts.get("layerName"):
        # Of the sources whose layer QGIS tells apart, only GeoPackage is a raster format.
        return f"GPKG:{path}:{parts['layerName']}"
    return path


def _open_options(texts: list[str]) -> dict[str, str]:
    options = {}
    for text in texts:
        name, _, value = str(text).partition("=")
        if not _OPTION.fullmatch(name):
            raise RasterOpenError(f"The raster layer has an open option that is not understood: '{name}'.")
        options[name.upper()] = value
    return options


def open_dataset(name: str, source: GdalSource) -> Any:
    """Open a raster in this process; QGIS has told GDAL already what signs in to an object store.

    Args:
        name: What messages call it.
        source: The raster.

    Raises:
        RasterOpenError: GDAL cannot open it.
        CredentialError: the authentication configuration cannot be used.
    """
    options = [f"{key}={value}" for key, value in source.open_options.items()]
    with _settings({**_LOOK_LIMITS, **_signing(source)}), warnings.catch_warnings():
        # GDAL 3.7 and later warn that their way of telling errors will change; both ways are handled here.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            dataset = gdal.OpenEx(source.look, gdal.OF_RASTER, open_options=options)
        except RuntimeError:
            dataset = None
    if dataset is None:
        raise RasterOpenError(
            f"GDAL cannot open the raster '{name}' as '{without_secrets(source.connection)}'.", hint=EXPORT
        )
    return dataset


def _signing(source: GdalSource) -> dict[str, str]:
    """Give what signs GDAL's requests to a web server: never as a header, which a redirect would take elsewhere."""
    if not source.authcfg:
        return {}
    lines = signature(source.authcfg, source.address)
    kind, _, value = lines.get("Authorization", "").partition(" ")
    if len(lines) == 1 and kind.lower() == "bearer":
        if int(gdal.VersionInfo()) < _BEARER_SINCE:
            release = gdal.VersionInfo("RELEASE_NAME")
            raise CredentialError(
                f"The GDAL of this QGIS ({release}) cannot look at a raster on a web server that wants a token.",
                hint="Use a QGIS with GDAL 3.9 or newer, sign in with name and password, or download the file.",
            )
        return {"GDAL_HTTP_AUTH": "BEARER", "GDAL_HTTP_BEARER": value}
    if len(lines) == 1 and kind.lower() == "basic":
        return {"GDAL_HTTP_AUTH": "BASIC", "GDAL_HTTP_USERPWD": base64.b64decode(value).decode("latin-1")}
    raise CredentialError(
        f"The authentication configuration '{source.authcfg}' signs in a way that rasters are not read with.",
        hint="Choose one of the kind basic or OAuth2.",
    )


@contextmanager
def _settings(options: Mapping[str, str]) -> Iterator[None]:
    """Set GDAL's configuration for this thread."""
    before = {name: gdal.GetThreadLocalConfigOption(name) for name in options}
    for name, value in options.items():
        gdal.SetThreadLocalConfigOption(name, value)
    try:
        yield
    finally:
        for name, earlier in before.items():
            gdal.SetThreadLocalConfigOption(name, earlier)
