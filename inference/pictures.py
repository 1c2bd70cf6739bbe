"""Pictures: pixels that QGIS reads or draws and hands to the worker, where only QGIS can.

QGIS imports this module: it needs nothing but the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .errors import ProtocolError
from .events import PixelsWanted

MAX_SIDE = 4096
"""Most columns and rows of one picture."""
MAX_BYTES = 2**28
"""Most bytes of one picture, pixels and cover together."""
MAX_BANDS = 1024

DTYPES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4, "float64": 8}
"""Types that pixels may have, as numpy calls them -> bytes of one."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A rectangle of pixels as QGIS gives it, and how well the source answered.

    Attributes:
        dtype: Type of the pixels, one of DTYPES, in the machine's own byte order.
        shape: Bands, rows, columns.
        pixels: Their bytes, band by band, row by row.
        cover: One byte a pixel, row by row: 1 where there is a pixel, 0 where none came.
        answered: Good answers that came from a server meanwhile; from caches there come none.
        failures: Requests that failed meanwhile; pixels that lack then may come with another try.
        reason: What the last failure was.
    """

    dtype: str
    shape: tuple[int, int, int]
    pixels: bytes = field(repr=False)
    cover: bytes = field(repr=False)
    answered: int = 0
    failures: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            ProtocolError: they do not, or are larger than allowed.
        """
        n_bands, height, width = self.shape
        n_pixels = check_size(width, height)
        if self.dtype not in DTYPES or not 0 < n_bands <= MAX_BANDS:
            raise ProtocolError(f"A picture of {n_bands} bands of the type '{self.dtype}' cannot be handed over.")
        if len(self.pixels) != n_bands * n_pixels * DTYPES[self.dtype] or len(self.cover) != n_pixels:
            raise ProtocolError("The parts of a picture do not fit together.")
        if len(self.pixels) + len(self.cover) > MAX_BYTES:
            raise ProtocolError("A picture is too large to be handed over.")


def check_size(width: int, height: int) -> int:
    """Give the number of a picture's pixels.

    Raises:
        ProtocolError: the sides are not within 1 to MAX_SIDE.
    """
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ProtocolError(f"A picture of {width} x {height} pixels cannot be handed over.")
    return width * height


def check_wanted(wanted: PixelsWanted) -> None:
    """Check a request.

    Raises:
        ProtocolError: it cannot be meant so.
    """
    check_size(wanted.width, wanted.height)
    extent = wanted.extent
    is_extent = len(extent) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in extent)
    if not is_extent or not (extent[0] < extent[2] and extent[1] < extent[3]):
        raise ProtocolError("The worker asked for pixels of an extent that is none.")
