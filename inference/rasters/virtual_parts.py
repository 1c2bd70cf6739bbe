"""The files that a virtual raster (.vrt) is made of: GDAL tells once that one of them is missing, and never again.

After that the place reads as zeros, in all threads and handles of the process. So a missing part ends the run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from rasterio._err import CPLE_OpenFailedError

from ..errors import RasterOpenError

_PART = re.compile(r"<Source(?:Filename|Dataset)([^>]*)>([^<]+)</Source(?:Filename|Dataset)>")
_ELSEWHERE = re.compile(r"/vsi|[A-Za-z0-9_]{2,}:")
"""Beginnings of names that are no paths of files: GDAL's virtual file systems, drivers' prefixes, addresses."""
_LARGEST = 256 * 2**20
_DEEPEST = 8


def check_parts(source: str) -> None:
    """Look whether the files that a virtual raster refers to are there.

    Args:
        source: GDAL's name of the raster; what is no virtual raster on disk passes.

    Raises:
        RasterOpenError: one is missing.
    """
    missing = next(_missing(Path(source), _DEEPEST), None)
    if missing is not None:
        raise part_error(source, f"{missing} is not there")


def part_error(source: str, reason: str) -> RasterOpenError:
    """Give the error for a virtual raster of which a part cannot be opened."""
    return RasterOpenError(
        f"The virtual raster '{source}' is incomplete: {reason}.",
        hint="Put the file back, or build the virtual raster again without it.",
    )


def is_part_missing(source: str, error: BaseException) -> bool:
    """Tell whether an error that came up while a raster was read means that one of its parts cannot be opened."""
    return source.lower().endswith(".vrt") and isinstance(error.__cause__ or error, CPLE_OpenFailedError)


def _missing(path: Path, depth: int) -> Iterator[Path]:
    if path.suffix.lower() != ".vrt" or depth == 0:
        return
    try:
        if path.stat().st_size > _LARGEST:
            return
        text = path.read_text("utf-8", "replace")
    except OSError:
        return  # GDAL says what is wrong with it
    for attributes, name in dict.fromkeys(_PART.findall(text)):
        part = _path_of(attributes, name, path.parent)
        if part is None:
            continue
        if not part.exists():
            yield part
        yield from _missing(part, depth - 1)


def _path_of(attributes: str, name: str, folder: Path) -> Path | None:
    name = html.unescape(name).strip()
    if _ELSEWHERE.match(name) or not name:
        return None
    is_relative = re.search(r'relativeToVRT\s*=\s*"1"', attributes, re.IGNORECASE) is not None
    # GDAL takes other relative names from the working directory, which is not the user's in the worker.
    return folder / name if is_relative else Path(name)
