"""Heads: from what a graph gives to detections, one module a family of layouts; see docs/model_formats.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from ...detections import Detections
from ...errors import ModelUnsupportedError
from ...models.onnx_heads import Reading

Outputs = Mapping[str, NDArray[Any]]
"""What a graph gave for a batch, by role or name."""
Size = tuple[int, int]
"""Height and width of the network's image, in pixels."""


@dataclass(frozen=True)
class HeadSettings:
    """What a head needs besides its reading.

    Attributes:
        n_classes: Classes of the definition; what the graph gives beyond is dropped.
        threshold: Lowest score.
        max_overlap: Limit of suppression, for heads that suppress inside a tile.
    """

    n_classes: int
    threshold: float
    max_overlap: float


class Head(Protocol):
    """Reads the outputs of a batch."""

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the roles of the outputs that it reads, and how many axes each has with the batch's."""
        ...

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Give what was found in the first n images, in network pixels.

        Raises:
            ModelIncompatibleError: the outputs do not have the form that the head expects.
        """
        ...


def make_head(reading: Reading, settings: HeadSettings) -> Head:
    """Make the head for a settled reading.

    Raises:
        ModelUnsupportedError: there is no such head.
    """
    from . import dense, pairs, rows, segmentation

    makers: dict[str, Callable[[Reading, HeadSettings], Head]] = {}
    for part in (dense, segmentation, rows, pairs):
        makers.update(part.MAKERS)
    if reading.head not in makers:
        raise ModelUnsupportedError(f"The head '{reading.head}' is not known.", hint=f"Heads: {', '.join(makers)}.")
    return makers[reading.head](reading, settings)
