"""SingleShotDetector of arcgis.learn: grids of anchors on one feature map, in the two versions of its head.

    body    a classifier's layers before the pool
    head    sconvs.0, then for each grid one step sconvs.g+1 to its size, and there oconvs.g: scores and boxes

Source:
    The head follows fastai's lesson on single shot detection; Liu et al., "SSD: Single Shot MultiBox Detector", 2016.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...errors import ModelIncompatibleError
from ...models.definition import ModelDefinition
from ..protocol import Detector, DetectorSettings
from ..torch_common import Normaliser, to_device
from .dense import (
    Anchors,
    DenseDetector,
    Rules,
    candidates_first,
    corners,
    grid_anchors,
    load_network,
    make_body,
    suppressing_traits,
)

FAMILY = "SingleShotDetector"
MOST_OF_A_CLASS = 50
"""Most objects of one class in one tile."""

_WIDTH = 256
_FINE_GRID = 8  # above it, a resnet may end one layer earlier
_NEAR = 4  # cells that the last feature map's side may differ from such a grid


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network that the definition's options describe, and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit, or a grid cannot be reached.
        ModelUnsupportedError: a backbone that Kestrel does not build.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    layout = _read_layout(definition)
    network = load_network(
        lambda: _network(layout, state), state, f"{FAMILY} with {layout.backbone}", layout.n_bands, settings
    )
    return DenseDetector(
        network,
        Normaliser(definition.input, settings.device),
        _Decoder(layout, settings.device),
        Rules(float(arguments["threshold"]), float(arguments["nms_overlap"]), most=MOST_OF_A_CLASS),
        suppressing_traits(definition, is_fixed=True, max_detections=MOST_OF_A_CLASS * layout.n_classes),
    )


@dataclass(frozen=True)
class _Layout:
    """What the definition says of the network."""

    backbone: str
    chip: int
    """Side of a tile, in pixels."""
    n_bands: int
    n_classes: int
    grids: tuple[int, ...]
    """Cells along a side, grid by grid."""
    shapes: tuple[tuple[float, float], ...]
    """Height and width of each of a cell's anchors, in cells."""
    version: int


def _read_layout(definition: ModelDefinition) -> _Layout:
    options = definition.options
    zooms, ratios = options.get("zooms") or [1.0], options.get("ratios") or [[1.0, 1.0]]
    return _Layout(
        backbone=str(options.get("backbone") or "resnet34"),
        chip=definition.tile.size,
        n_bands=len(definition.input.bands),
        n_classes=len(definition.classes),
        grids=tuple(int(grid) for grid in options["grids"]),
        shapes=tuple((zoom * height, zoom * width) for zoom in zooms for height, width in ratios),
        version=int(options.get("version") or 1),
    )


@dataclass(frozen=True)
class Step:
    """A convolution from one grid to the next; `resize_to`: the map is resized to that side first."""

    filter_size: int
    padding: int
    stride: int
    resize_to: int | None = None


def choose_step(side: int, grid: int, version: int) -> Step:
    """Choose the convolution that makes a map of `side` cells one of `grid` cells, as the head's version does.

    Raises:
        ModelIncompatibleError: version 1 has none.
    """
    if version >= 2:
        return _step_of_version_2(side, grid)
    tried = (Step(size, padding, stride) for size in (3, 2, 5, 4) for padding in range(4) for stride in (1, 2, 3))
    for step in tried:
        if side - step.filter_size + 2 * step.padding == (grid - 1) * step.stride:
            return step
    raise ModelIncompatibleError(
        f"A {FAMILY} of version 1 has no step from {side} to {grid} cells.",
        hint="Set Grids, ImageHeight, backbone and SSDVersion in the model definition to those of the training.",
    )


def _step_of_version_2(side: int, grid: int) -> Step:
    if grid == 1:
        return Step(side, 0, 1)
    for padding in (0, 1):
        for stride in (1, 2):
            if (side - 3 + 2 * padding) // stride + 1 == grid:
                return Step(3, padding, stride)
    return Step(3, 1, 1, resize_to=grid)


class _Conv(nn.Module):
    """A step of the head."""

    def __init__(self, n_channels: int, step: Step) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, _WIDTH, step.filter_size, step.stride, step.padding)
        self.bn = nn.BatchNorm2d(_WIDTH)
        self._resize_to = step.resize_to

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if self._resize_to is not None:
            maps = functional.interpolate(maps, size=(self._resize_to, self._resize_to))
        normalised: torch.Tensor = self.bn(functional.relu(self.conv(maps)))
        return normalised


class _Outputs(nn.Module):
    """Scores and boxes of one grid."""

    def __init__(self, n_shapes: int, n_scores: int) -> None:
        super().__init__()
        self.oconv1 = nn.Conv2d(_WIDTH, n_scores * n_shapes, 3, padding=1)
        self.oconv2 = nn.Conv2d(_WIDTH, 4 * n_shapes, 3, padding=1)
        self._n_scores = n_scores

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return candidates_first(self.oconv1(maps), self._n_scores), candidates_first(self.oconv2(maps), 4)


class _Head(nn.Module):
    """Gives raw scores (N, A, C + 1), the background first, and box activations (N, A, 4)."""

    def __init__(self, n_channels: int, steps: list[Step], n_shapes: int, n_scores: int) -> None:
        super().__init__()
        first = _Conv(n_channels, Step(3, 1, 1))
        self.sconvs = nn.ModuleList([first, *(_Conv(_WIDTH, step) for step in steps)])
        self.oconvs = nn.ModuleList([_Outputs(n_shapes, n_scores) for _ in steps])

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.sconvs[0](functional.relu(features))
        outputs = []
        for step, output in zip(self.sconvs[1:], self.oconvs):
            maps = step(maps)
            outputs.append(output(maps))
        scores, activations = zip(*outputs)
        return torch.cat(scores, dim=1), torch.cat(activations, dim=1)


def _network(layout: _Layout, state: Mapping[str, torch.Tensor]) -> nn.Sequential:
    body, n_channels, side = _body(layout, state)
    steps = list(_steps(side, layout))
    return nn.Sequential(body, _Head(n_channels, steps, len(layout.shapes), layout.n_classes + 1))


def _body(layout: _Layout, state: Mapping[str, torch.Tensor]) -> tuple[nn.Sequential, int, int]:
    """Give the body, the number of its channels, and the side of its map.

    A resnet loses its last layer where the first grid is fine and the last map's side is not near it. Whether it did
    shows in the weights, too.
    """
    is_resnet = layout.backbone.startswith("resnet")
    body = make_body(FAMILY, layout.backbone, layout.n_bands, cut=-2 if is_resnet else -1)
    n_channels, side = _measure(body, layout)
    is_far = layout.grids[0] > _FINE_GRID and abs(side - layout.grids[0]) > _NEAR
    if is_resnet and is_far and not any(name.startswith("0.7.") for name in state):
        body = body[:-1]
        n_channels, side = _measure(body, layout)
    return body, n_channels, side


def _measure(body: nn.Sequential, layout: _Layout) -> tuple[int, int]:
    maps = body.eval()(torch.empty(1, layout.n_bands, layout.chip, layout.chip))
    return maps.shape[1], maps.shape[2]


def _steps(side: int, layout: _Layout) -> Iterator[Step]:
    for grid in layout.grids:
        yield choose_step(side, grid, layout.version)
        side = grid


class _Decoder:
    """From raw outputs to boxes and scores."""

    def __init__(self, layout: _Layout, device: str) -> None:
        """Put the anchors on the device."""
        shapes = torch.tensor(layout.shapes, dtype=torch.float32)
        grids = [grid_anchors(grid, grid, shapes / grid) for grid in layout.grids]
        cells = [torch.full((len(anchors.centres), 1), 1 / grid) for anchors, grid in zip(grids, layout.grids)]
        self._anchors = Anchors(
            to_device(torch.cat([anchors.centres for anchors in grids]), device),
            to_device(torch.cat([anchors.sizes for anchors in grids]), device),
        )
        self._cells = to_device(torch.cat(cells), device)

    def __call__(self, raw: tuple[torch.Tensor, torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode, see `dense.Decode`."""
        scores, activations = raw
        moved = activations.tanh()
        centres = moved[..., :2] / 2 * self._cells + self._anchors.centres
        sizes = (moved[..., 2:] / 2 + 1) * self._anchors.sizes
        return corners(centres, sizes) * side, scores[..., 1:].sigmoid()
