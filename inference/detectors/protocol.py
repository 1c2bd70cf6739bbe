"""What the pipeline needs to know of a detector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ..detections import Detections


@dataclass(frozen=True)
class DetectorSettings:
    """Where a network runs.

    Args:
        device: "cpu", "cuda:0", "mps".
        n_threads: Threads that inference may use on the CPU.
        allowed_code: SHA-256 of the package's program that the user consented to; empty: no program is run.
        sample: Gives a tile of the raster as the run will show it to the network, (C, height, width), for the height
            and width that it takes (None: any) and the number of a place to look at: what a model does not say of
            itself is found out with it. None where there is no raster.
    """

    device: str = "cpu"
    n_threads: int = 1
    allowed_code: str = ""
    sample: Callable[[tuple[int, int] | None, int], NDArray[Any]] | None = None


@dataclass(frozen=True)
class Traits:
    """What a network is like, as far as tiles are concerned. Pixels are network pixels.

    Args:
        stride: Moving the image by this many pixels moves the output, and changes nothing else.
        receptive_field_radius: Farthest pixel from an anchor that its output depends on; None: all of them, or unknown.
        is_dense: Gives candidates before suppression, with anchors.
        network_size: The only width of its images; None: any multiple of the stride.
        network_height: Their height, where that is another than the width.
        max_batch: Largest batch that it takes; None: any.
        max_detections: Most detections that it gives for one tile; None: no limit.
        n_callers: Threads that may call `predict` at the same time with profit.
        padding: The only padding that it works with; None: any.
        wants_raw: Batches come in the raster's own type, with one band more: 1 where a pixel is valid, 0 where not.
        geometry: What its objects are: "box", "polygon", "point" or "line".
        is_oriented: Its objects are rotated rectangles, polygons of four corners; results tell their "Angle".
        notes: What was found out while the network was loaded, and assumed, for the user.
        fields: Attributes that objects carry besides class and score, each with `name`, `type` (text, integer,
            number) and perhaps `alias`.
    """

    stride: int
    receptive_field_radius: int | None
    is_dense: bool
    network_size: int | None = None
    network_height: int | None = None
    max_batch: int | None = None
    max_detections: int | None = None
    n_callers: int = 1
    padding: int | None = None
    wants_raw: bool = False
    geometry: str = "box"
    is_oriented: bool = False
    fields: tuple[Mapping[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Tell whether tiles can equal one pass over the whole image."""
        return self.is_dense and self.receptive_field_radius is not None

    @property
    def is_joined(self) -> bool:
        """Tell whether its objects are outlines that the edges of tiles cut, and that are joined across them.

        Candidates of a dense head belong to their anchors, and a turned rectangle is known as a whole or not at all.
        """
        return self.geometry == "polygon" and not self.is_oriented and not self.is_dense


def close_detector(detector: Detector) -> None:
    """Let go of what a detector holds besides memory: the process of a package's own program."""
    close = getattr(detector, "close", None)
    if close is not None:
        close()


class Detector(Protocol):
    """A loaded network."""

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        ...

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects.

        Shape:
            batch (N, C, S, S), raster values in the order of the definition's bands; gives N Detections in network
            pixels.

        Raises:
            DeviceMemoryError: the batch is too large.
        """
        ...
