"""One request for pixels of an ArcGIS image service: its parameters, and what must come back.

Source: ArcGIS REST API, "Export Image".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelIncompatibleError, ServiceError
from ..net.http import HttpClient
from ..tiling import Window
from .arcgis import PIXEL_TYPES, Service, bbox_of
from .image_reply import Picture, picture_taker
from .source import TargetGrid

RULES = ("mosaicRule", "renderingRule", "time", "noData", "noDataInterpretation")
"""Options of a raster that go to the server as they are."""

NEAREST = "RSP_NearestNeighbor"
RESAMPLINGS = {
    "nearest": NEAREST,
    "bilinear": "RSP_BilinearInterpolation",
    "cubic": "RSP_CubicConvolution",
    "average": "RSP_BilinearInterpolation",
}
"""ArcGIS has no mean; what it makes of coarser pixels comes from its pyramids, which are means."""

_BLOCK = 1024
"""Rows and columns of a block; less where the server allows less, or where a block would be large."""
_BLOCK_BYTES = 16 * 2**20
_MAX_REPLY = 256 * 2**20


@dataclass(frozen=True)
class ImageExport:
    """What is asked of a service each time.

    Attributes:
        rules: See RULES.
        pixel_type: In ArcGIS's words; None: as the service makes it.
        bands: 0-based numbers with commas; None: all.
        n_bands: How many come; None: not known yet.
    """

    client: HttpClient
    service: Service
    rules: Mapping[str, Any] = field(default_factory=dict)
    pixel_type: str | None = None
    bands: str | None = None
    n_bands: int | None = None

    def picture(self, grid: TargetGrid, window: Window, reference: str, resampling: str = NEAREST) -> Picture:
        """Get a window of a grid, with the values of the service.

        Args:
            grid: The grid.
            window: A part of it.
            reference: The grid's coordinate reference system, in ArcGIS's words.
            resampling: One of RESAMPLINGS' values.

        Raises:
            NetworkError, ServiceError, CredentialError: it does not come.
        """
        wanted = {"format": "tiff", "pixelType": self.pixel_type, "bandIds": self.bands, "interpolation": resampling}
        return self._get(grid, window, reference, wanted, self.n_bands)

    def is_there(self, grid: TargetGrid, window: Window, reference: str) -> NDArray[np.bool_]:
        """Get where the service has pixels at all: what it does not show is transparent in a drawn picture.

        Shape:
            (H, W).

        Raises: as `picture`.
        """
        wanted = {"format": "png32", "interpolation": NEAREST}
        drawn = self._get(grid, window, reference, wanted, None)
        found: NDArray[np.bool_] = np.logical_or.reduce(drawn.present, axis=0)
        return found

    def _get(
        self, grid: TargetGrid, window: Window, reference: str, wanted: Mapping[str, Any], n_bands: int | None
    ) -> Picture:
        found: list[Picture] = []
        parameters = {
            "f": "image",
            **wanted,
            "bbox": bbox_of(grid.transform, window),
            "size": f"{window.width},{window.height}",
            "bboxSR": reference,
            "imageSR": reference,
            "adjustAspectRatio": "false",
            **self.rules,
        }
        self.client.get(
            f"{self.service.url}/exportImage",
            parameters,
            max_bytes=_MAX_REPLY,
            accept=picture_taker(window.width, window.height, found, n_bands),
        )
        return found[0]

    def check(self, picture: Picture, dtype: np.dtype[Any]) -> None:
        """Look at what came.

        Raises:
            ServiceError: it is of another type, or has another number of bands, than the first picture.
        """
        pixels = picture.pixels
        if len(pixels) != self.n_bands or pixels.dtype != dtype:
            raise ServiceError(
                f"The server sent {len(pixels)} bands of {pixels.dtype} instead of {self.n_bands} of {dtype}."
            )


def wanted_type(service: Service) -> str:
    """Give the pixel type to ask for.

    Raises:
        ModelIncompatibleError: no model takes it.
    """
    stated = str(service.data.get("pixelType", "UNKNOWN"))
    if stated in ("C64", "C128"):
        raise ModelIncompatibleError(f"The service '{service.url}' holds complex numbers, which no model takes.")
    if stated not in PIXEL_TYPES:
        return "UNKNOWN"
    return "U8" if stated in ("U1", "U2", "U4") else stated


def stated_count(service: Service) -> int | None:
    """Give the number of bands that a service says to have."""
    stated = service.data.get("bandCount")
    return stated if isinstance(stated, int) else None


def block_side(service: Service, pixel_bytes: int) -> int:
    """Give the rows and columns of the blocks to ask for."""
    side = _BLOCK
    while side > 256 and side * side * pixel_bytes > _BLOCK_BYTES:
        side //= 2
    return min(side, *service.most_pixels)
