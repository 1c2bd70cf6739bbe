"""What arcgis.learn's one-stage networks share: loading, anchors, and the choice among their many candidates.

A network gives a score for each class and four activations for each cell of its grids and each of the cell's anchors.
Candidates stand in one row: grid after grid, each grid row by row, in each cell the anchors. They are decoded and
suppressed here, on the network's device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.ops import nms

from ...detections import Detections, concatenate, make_detections
from ...errors import ModelUnsupportedError
from ...models.definition import ModelDefinition
from ..protocol import DetectorSettings, Traits
from ..torch_common import Normaliser, check_bands, create_body, fill, make_ready, translated

STRIDE = 32
"""Of the coarsest feature map that these networks take from their backbones."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """The boxes that activations are measured against, in shares of the image's sides.

    Shape:
        centres (A, 2), y x; sizes (A, 2), h w.
    """

    centres: torch.Tensor
    sizes: torch.Tensor


def grid_anchors(n_rows: int, n_columns: int, sizes: torch.Tensor) -> Anchors:
    """Give the anchors of one grid: in the middle of each of its cells one of each size.

    Shape:
        sizes (k, 2), h w; gives n_rows * n_columns * k anchors, at ((row * n_columns + column) * k + size).
    """
    rows = (torch.arange(n_rows, dtype=torch.float32, device=sizes.device) + 0.5) / n_rows
    columns = (torch.arange(n_columns, dtype=torch.float32, device=sizes.device) + 0.5) / n_columns
    cells = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2)
    return Anchors(cells.repeat_interleave(len(sizes), dim=0), sizes.repeat(len(cells), 1))


def candidates_first(maps: torch.Tensor, n_values: int) -> torch.Tensor:
    """Give a head's map as one row of candidates.

    Shape:
        maps (N, k * n_values, H, W), a cell's channels anchor by anchor; gives (N, H * W * k, n_values).
    """
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, n_values)


def corners(centres: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Give boxes x0 y0 x1 y1.

    Shape:
        centres (..., 2), y x; sizes (..., 2), h w; gives (..., 4).
    """
    return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)[..., [1, 0, 3, 2]]


@dataclass(frozen=True)
class Rules:
    """Which candidates become objects."""

    threshold: float
    max_overlap: float
    """Highest intersection over union of two objects."""
    is_inclusive: bool = False
    """A score equal to the threshold is enough, and an overlap equal to the limit is too much."""
    is_best_class_only: bool = False
    """A candidate stands for its best class alone, not for each class above the threshold."""
    is_across_classes: bool = False
    """Objects of different classes suppress each other."""
    most: int | None = None
    """Most objects of those that suppress each other: of a class, or of all; None: any number."""

    def pass_on(self, scores: torch.Tensor) -> torch.Tensor:
        """Tell which scores reach the threshold. What is no number passes, for the run to count and drop."""
        return ~(scores < self.threshold) if self.is_inclusive else ~(scores <= self.threshold)

    def suppress(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Give the indices of the boxes that stay, best first.

        Shape:
            boxes (N, 4), scores (N,).
        """
        # nms lets an overlap that equals its limit pass. It compares in float32 on a GPU and in float64 on a CPU: a
        # limit that float32 can hold is the same for both.
        limit = np.float32(self.max_overlap)
        if self.is_inclusive:
            limit = np.nextafter(limit, np.float32(-1))
        kept: torch.Tensor = nms(boxes, scores, float(limit))
        return kept[: self.most]


def choose(boxes: torch.Tensor, scores: torch.Tensor, rules: Rules) -> Detections:
    """Give the objects among one image's candidates.

    Shape:
        boxes (A, 4), x0 y0 x1 y1 in pixels; scores (A, C).
    """
    if rules.is_best_class_only:
        best, classes = scores.max(dim=1)
        index = rules.pass_on(best).nonzero().squeeze(1)
        labels = classes[index]
    else:
        index, labels = rules.pass_on(scores).nonzero(as_tuple=True)
    boxes, scores = boxes[index], scores[index, labels]
    if rules.is_across_classes:
        return _take(boxes, scores, labels, rules.suppress(boxes, scores))
    groups = [(labels == label).nonzero().squeeze(1) for label in sorted(set(labels.tolist()))]
    kept = [group[rules.suppress(boxes[group], scores[group])] for group in groups]
    return concatenate([_take(boxes, scores, labels, index) for index in kept])


def _take(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> Detections:
    return make_detections(*(values[index].cpu().numpy() for values in (boxes, scores, labels)))


Decode = Callable[[Any, int], "tuple[torch.Tensor, torch.Tensor]"]
"""From a network's output and the side of its input to boxes (N, A, 4), in pixels, and scores (N, A, C)."""


class DenseDetector:
    """A network whose candidates are decoded and suppressed here, tile by tile, as arcgis.learn does it."""

    def __init__(self, network: nn.Module, normalise: Normaliser, decode: Decode, rules: Rules, traits: Traits) -> None:
        """Take the parts."""
        self._network, self._normalise, self._decode = network, normalise, decode
        self._rules, self._traits = rules, traits

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        with translated(len(batch)), torch.inference_mode():
            boxes, scores = self._decode(self._network(self._normalise(batch)), batch.shape[-1])
            return [choose(*candidates, self._rules) for candidates in zip(boxes, scores)]


def suppressing_traits(definition: ModelDefinition, *, is_fixed: bool, max_detections: int | None = None) -> Traits:
    """Describe a network that suppresses inside; `is_fixed`: it takes tiles of the definition's size and no others."""
    return Traits(
        # Tiles of a fixed size lie as ArcGIS lays its chips: wherever the padding puts them.
        stride=definition.tile.stride or (1 if is_fixed else STRIDE),
        receptive_field_radius=None,
        is_dense=False,
        network_size=definition.tile.size if is_fixed else None,
        max_detections=max_detections,
    )


def load_network(
    build: Callable[[], nn.Module], state: Mapping[str, torch.Tensor], what: str, n_bands: int,
    settings: DetectorSettings,
) -> nn.Module:  # fmt: skip
    """Build a network, fill it with a package's weights, and make it ready.

    Args:
        build: Gives the network. It runs without memory for weights, which would only be replaced.
        state: The package's weights.
        what: The network's name for messages.
        n_bands: Bands that the definition names.
        settings: Device and threads.

    Raises:
        ModelIncompatibleError: the weights do not fit.
        ModelUnsupportedError: a backbone that Kestrel does not build.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    with torch.device("meta"):
        network = build()
    first = next(name for name, weight in network.named_parameters() if weight.dim() == 4)
    check_bands(state, first, n_bands, what)
    network = network.to_empty(device="cpu")
    fill(network, state, what)
    return make_ready(network, settings)


def make_body(family: str, backbone: str, n_bands: int, cut: int) -> nn.Sequential:
    """Give a backbone's convolutional part, see `create_body`.

    Raises:
        ModelUnsupportedError: not one of the backbones that Kestrel builds; it names the family, too.
    """
    try:
        return create_body(backbone, n_bands, cut)
    except ModelUnsupportedError as error:
        raise unsupported_backbone(family, backbone, error.hint) from error


def unsupported_backbone(family: str, backbone: str, backbones: str) -> ModelUnsupportedError:
    """Give the error for a backbone that Kestrel does not build; `backbones`: a sentence with those that it does."""
    return ModelUnsupportedError(
        f"Kestrel does not build a {family} with the backbone '{backbone}'.",
        hint=f"{backbones} A TorchScript or ONNX copy in the package can take its place.",
    )
