"""Draft: the parameters of `kestrel:detectobjects` while a request is translated, and what is to be told about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PureWindowsPath
from typing import Any

from .values import as_text, refused

_SHOWN = 60  # characters of a foreign name that a message shows
_WEB = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_FEATURE_CLASS = re.compile(r"""([^'"]+\.(?:gdb|gpkg))[\\/](?:[^'"]*[\\/])?(?:main\.)?([^\\/'"]+)""", re.IGNORECASE)
_LONGEST_PATH = 4096  # characters; looking through a longer text would take ever longer
_STORES = re.compile(r"/(?:fileShares|rasterStores|cloudStores|bigDataFileShares|enterpriseDatabases)/", re.IGNORECASE)


@dataclass
class Draft:
    """What has been translated so far.

    Attributes:
        folder: Where relative paths begin; None: in the working directory.
        values: Parameters of `kestrel:detectobjects`.
        warnings: What has no effect, member by member.
        crs: Coordinate reference systems that QGIS has to know, by the members that name them.
        services: ArcGIS services that a parameter stands for, by the parameter's key: member and URL.
        cell_factor: How many times as large as the raster's the cells are to be; None: nothing was said of that.
    """

    folder: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    crs: dict[str, str] = field(default_factory=dict)
    services: dict[str, tuple[str, str]] = field(default_factory=dict)
    cell_factor: float | None = None

    def tell(self, member: str, reason: str) -> None:
        """Say that a member has no effect."""
        self.warnings.append(f"The request's member '{member[:_SHOWN]}' has no effect: {reason}.")

    def tell_unknown(self, member: str, content: Mapping[str, Any], known: Iterable[str]) -> None:
        """Say which members of an object are not known, and what they may have been meant to be."""
        names = tuple(known)
        for name in content:
            if name not in names:
                near = get_close_matches(name.lower(), [entry.lower() for entry in names], n=1)
                meant = next((entry for entry in names if entry.lower() in near), "")
                self.tell(
                    f"{member}.{name}" if member else name,
                    "Kestrel does not know it" + (f"; perhaps '{meant}' was meant" if meant else ""),
                )

    def place(self, member: str, value: Any) -> str:
        """Give the file, folder or address that a uri names.

        Raises:
            JobError: no text, or the store of a server, which only that server can look up.
        """
        uri = as_text(member, value)
        store = _STORES.match(uri)
        if store:
            raise refused(
                member,
                f"lies in a data store of an ArcGIS server, '{store.group()}', which only that server can look up",
                "Give the path of the file as this computer sees it (a drive, a mount, \\\\server\\share), the url of "
                "an image service made from it, or its address in the cloud (https://, /vsis3/, /vsiaz/).",
            )
        # On Linux a Windows path looks relative, and is none.
        is_relative = not (_WEB.match(uri) or uri.startswith("<") or PureWindowsPath(uri).drive)
        if self.folder is None or not is_relative:
            return uri
        return str(self.folder / uri)


def is_address(text: str) -> bool:
    """Tell whether a text is an address of the web."""
    return text.lower().startswith(("http://", "https://"))


def feature_class(path: str) -> tuple[str, str]:
    """Give file and table of a path such as C:/data/city.gdb/trees; no table where the path is that of a file."""
    found = _FEATURE_CLASS.fullmatch(path) if len(path) <= _LONGEST_PATH else None
    return (found.group(1), found.group(2)) if found else (path, "")
