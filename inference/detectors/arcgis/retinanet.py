"""RetinaNet of arcgis.learn, which is fastai's: a resnet, a pyramid of five levels, two heads shared by the levels.

    C3 C4 C5    the resnet's last three layers
    P5 P6 P7    from C5
    P4 P3       from the level above, enlarged, and C4, C3
    P3 .. P5    smoothed

Source:
    Lin et al., "Focal Loss for Dense Object Detection", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ...models.definition import ModelDefinition
from ..protocol import Detector, DetectorSettings
from ..torch_common import Normaliser
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
    unsupported_backbone,
)

FAMILY = "RetinaNet"
SCALES = (1.0, 2 ** (-1 / 3), 2 ** (-2 / 3))
RATIOS = (0.5, 1.0, 2.0)

_WIDTH = 256
_LAST_LAYERS = (5, 6, 7)  # of the encoder: they give C3, C4, C5
_CELLS = 4  # side of an anchor of scale and ratio 1
_DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # that activations are divided by in training


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network that the definition's options describe, and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit.
        ModelUnsupportedError: a backbone that Kestrel does not build.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    options = definition.options
    backbone = str(options.get("backbone") or "resnet50")
    n_bands, n_classes = len(definition.input.bands), len(definition.classes)
    decoder = _Decoder(
        tuple(float(scale) for scale in options.get("scales") or SCALES),
        tuple(float(ratio) for ratio in options.get("ratios") or RATIOS),
        is_textbook=arguments.get("box_decoding") == "textbook",
    )
    network = load_network(
        lambda: _Network(backbone, n_bands, n_classes, len(decoder.shapes)),
        state, f"{FAMILY} with {backbone}", n_bands, settings,
    )  # fmt: skip
    return DenseDetector(
        network,
        Normaliser(definition.input, settings.device),
        decoder,
        Rules(
            float(arguments["threshold"]), float(arguments["nms_overlap"]),
            is_best_class_only=True, is_across_classes=True,
        ),
        suppressing_traits(definition, is_fixed=not definition.tile.is_variable),
    )  # fmt: skip


class _Merge(nn.Module):
    """A level of the pyramid from the one above it and the resnet's layer of the same scale."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.conv_lat = nn.Conv2d(n_channels, _WIDTH, 1)

    def forward(self, above: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
        enlarged = functional.interpolate(above, scale_factor=2.0)
        # The layer is smaller by a row or a column where the tile's side is no multiple of the stride.
        return enlarged + functional.interpolate(self.conv_lat(layer), size=enlarged.shape[-2:])


def _head(n_values: int) -> nn.Sequential:
    layers = [
        nn.Sequential(nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(_WIDTH)) for _ in range(4)
    ]
    return nn.Sequential(*layers, nn.Conv2d(_WIDTH, n_values, 3, padding=1))


class _Network(nn.Module):
    """Gives raw scores (N, A, C), box activations (N, A, 4), and the rows and columns of each level."""

    def __init__(self, backbone: str, n_bands: int, n_classes: int, n_shapes: int) -> None:
        super().__init__()
        self.encoder = _encoder(backbone, n_bands)
        c3, c4, c5 = (maps.shape[1] for maps in self._layers(torch.empty(1, n_bands, 64, 64)))
        self.c5top5 = nn.Conv2d(c5, _WIDTH, 1)
        self.c5top6 = nn.Conv2d(c5, _WIDTH, 3, stride=2, padding=1)
        self.p6top7 = nn.Sequential(nn.ReLU(), nn.Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1))
        self.merges = nn.ModuleList([_Merge(c4), _Merge(c3)])
        self.smoothers = nn.ModuleList([nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1) for _ in range(3)])
        self.classifier = _head(n_classes * n_shapes)
        self.box_regressor = _head(4 * n_shapes)
        self._n_classes = n_classes

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
        levels = self._pyramid(images)
        scores = [candidates_first(self.classifier(level), self._n_classes) for level in levels]
        activations = [candidates_first(self.box_regressor(level), 4) for level in levels]
        sides = [(level.shape[-2], level.shape[-1]) for level in levels]
        return torch.cat(scores, dim=1), torch.cat(activations, dim=1), sides

    def _pyramid(self, images: torch.Tensor) -> list[torch.Tensor]:
        c3, c4, c5 = self._layers(images)
        p5, p6 = self.c5top5(c5), self.c5top6(c5)
        p4 = self.merges[0](p5, c4)
        p3 = self.merges[1](p4, c3)
        smooth = [smoother(level) for smoother, level in zip(self.smoothers, (p3, p4, p5))]
        return [*smooth, p6, self.p6top7(p6)]

    def _layers(self, images: torch.Tensor) -> list[torch.Tensor]:
        maps, layers = images, []
        for index, layer in enumerate(self.encoder):
            maps = layer(maps)
            if index in _LAST_LAYERS:
                layers.append(maps)
        return layers


def _encoder(backbone: str, n_bands: int) -> nn.Sequential:
    if not backbone.startswith("resnet"):
        raise unsupported_backbone(FAMILY, backbone, "Backbones: resnet18, resnet34, resnet50, resnet101, resnet152.")
    return make_body(FAMILY, backbone, n_bands, cut=-2)


@dataclass(frozen=True)
class _Decoder:
    """From raw outputs to boxes and scores.

    Args:
        scales, ratios: Of the anchors; a ratio is height over width.
        is_textbook: Read a box's size from its own activations. arcgis.learn reads it from those of the centre: models
            are scored and used like that.
    """

    scales: tuple[float, ...]
    ratios: tuple[float, ...]
    is_textbook: bool

    @property
    def shapes(self) -> list[tuple[float, float]]:
        """Give height and width of each of a cell's anchors, in cells."""
        sides = [(_CELLS * scale, math.sqrt(ratio)) for ratio in self.ratios for scale in self.scales]
        return [(side * root, side / root) for side, root in sides]

    def __call__(
        self, raw: tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]], side: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode, see `dense.Decode`."""
        scores, activations, sides = raw
        anchors = self._anchors(sides, activations.device)
        scaled = activations * torch.tensor(_DEVIATIONS, device=activations.device)
        centres = scaled[..., :2] * anchors.sizes + anchors.centres
        sizes = scaled[..., 2:].exp() if self.is_textbook else scaled[..., :2].exp()
        return corners(centres, sizes * anchors.sizes).clamp(0, 1) * side, scores.sigmoid()

    def _anchors(self, sides: list[tuple[int, int]], device: torch.device) -> Anchors:
        shapes = torch.tensor(self.shapes, dtype=torch.float32, device=device)
        levels = [grid_anchors(h, w, shapes / torch.tensor([h, w], device=device)) for h, w in sides]
        return Anchors(torch.cat([level.centres for level in levels]), torch.cat([level.sizes for level in levels]))
