"""Pictures as servers send them, decoded in memory, and looked at before they are believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from ..errors import NetworkError, RasterReadError, ServiceError
from ..net.addresses import shown
from ..net.replies import Reply, TryAgain, raise_for_error
from ..tiling import Window

_DRIVERS = ("GTiff", "PNG", "JPEG", "WEBP")
_MOST_BYTES = 2**30
"""Of the pixels of one picture."""
_SETTINGS = {"GDAL_PAM_ENABLED": "NO", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


@dataclass(frozen=True)
class Picture:
    """A decoded answer.

    Shape:
        pixels (C, H, W) without alpha; present (C, H, W).

    Attributes:
        colors: The colour table as (3, entries), where there is one.
        nodata: The value that stands for no data, as the file says.
    """

    pixels: NDArray[Any]
    present: NDArray[np.bool_]
    colors: NDArray[np.uint8] | None = None
    nodata: float | None = None


def is_refusal(error: ServiceError | NetworkError) -> bool:
    """Tell whether a server says no to one question, and may say yes to others: not that it is gone."""
    return isinstance(error, ServiceError) or error.context.get("status") == 500


@contextmanager
def refusals_told(name: str, window: Window | None = None) -> Iterator[None]:
    """Turn a server's no into the error of a window that cannot be read; None: of the whole raster."""
    try:
        yield
    except (ServiceError, NetworkError) as error:
        if not is_refusal(error):
            raise
        if window is None:
            raise RasterReadError(f"The raster '{name}' cannot be looked at as a whole: {error.message}") from error
        raise RasterReadError(
            f"The raster '{name}' cannot be read at columns {window.x} to {window.right}, "
            f"rows {window.y} to {window.bottom}: {error.message}",
            window=[window.x, window.y, window.width, window.height],
        ) from error


def picture_hash(get: Callable[[], tuple[NDArray[Any], NDArray[np.bool_]]]) -> str | None:
    """Give a hash of a coarse picture of a service; None where the service does not give one.

    Args:
        get: Asks for the picture.
    """
    try:
        pixels, _ = get()
    except (ServiceError, NetworkError) as error:
        if not is_refusal(error):
            raise
        return None
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def picture_taker(width: int, height: int, found: list[Picture], n_bands: int | None = None) -> Callable[[Reply], None]:
    """Give an `accept` for HttpClient.get that decodes the picture of an answer into `found`.

    Args:
        width: Columns that were asked for.
        height: Rows.
        found: Holds the one picture afterwards.
        n_bands: Bands that were asked for, see `decode`.
    """

    def accept(reply: Reply) -> None:
        found[:] = [decode(reply, n_bands, (width, height))]

    return accept


def decode(reply: Reply, n_bands: int | None = None, size: tuple[int, int] | None = None) -> Picture:
    """Decode a picture.

    Args:
        reply: The server's answer.
        n_bands: Bands that were asked for: as many are pixels, whatever the file calls the fourth; None: alpha is told
            by its name.
        size: Columns and rows that were asked for; None: as many as a tile may have.

    Raises:
        TryAgain: the answer is none: the page of a proxy, something damaged, of another size, or that the server is
            busy.
        ServiceError, CredentialError: the server tells an error.
    """
    _raise_told_error(reply)
    try:
        with rasterio.Env(**_SETTINGS), MemoryFile(reply.content) as file, file.open(driver=_driver(reply)) as dataset:
            _check_size(reply, dataset, size)
            return _picture(dataset, n_bands)
    except (RasterioError, ValueError) as error:
        kind = reply.content_type or "unknown type"
        raise TryAgain(
            ServiceError(f"The server sent no readable picture for '{shown(reply.url)}' ({kind})."), few=True
        ) from error


def _check_size(reply: Reply, dataset: Any, size: tuple[int, int] | None) -> None:
    """Look at what a picture says of itself before it is unpacked: a small answer may claim to be a huge one.

    Raises:
        TryAgain: it is not what was asked for, or too large.
    """
    columns, rows = dataset.width, dataset.height
    if size is not None and (columns, rows) != size:
        said = f"{columns} x {rows} pixels instead of {size[0]} x {size[1]}"
    elif columns * rows * sum(np.dtype(kind).itemsize for kind in dataset.dtypes) > _MOST_BYTES:
        said = f"a picture of {columns} x {rows} pixels in {dataset.count} bands, which is too large,"
    else:
        return
    raise TryAgain(ServiceError(f"The server sent {said} for '{shown(reply.url)}'."), few=True)


def _picture(dataset: Any, n_bands: int | None) -> Picture:
    alpha = [number for number, color in enumerate(dataset.colorinterp, 1) if color == ColorInterp.alpha]
    if dataset.count == n_bands:
        alpha = []
    bands = [number for number in range(1, dataset.count + 1) if number not in alpha]
    pixels = dataset.read(bands)
    if ColorInterp.alpha in dataset.colorinterp and not alpha:
        present = np.ones(pixels.shape, np.bool_)  # its mask would be the fourth band
    else:
        present = dataset.read_masks(bands) > 0
    colors = None
    if dataset.colorinterp[0] == ColorInterp.palette:
        table = dataset.colormap(1)
        colors = np.zeros((3, max(table) + 1), np.uint8)
        for index, color in table.items():
            colors[:, index] = color[:3]
    return Picture(pixels, present, colors, None if dataset.nodata is None else float(dataset.nodata))


def _driver(reply: Reply) -> str:
    """Tell the format by the first bytes, so that nothing else is opened than what is expected.

    Raises:
        ValueError: it is none of these.
    """
    start = reply.content[:12]
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "GTiff"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "WEBP"
    raise ValueError(f"none of {', '.join(_DRIVERS)}")


def _raise_told_error(reply: Reply) -> None:
    """Raise the error that ArcGIS tells in JSON instead of the picture, with status 200."""
    if reply.content.lstrip()[:1] != b"{":
        return
    try:
        data = json.loads(reply.content)
    except (ValueError, RecursionError):
        return
    raise_for_error(data, reply.url)
