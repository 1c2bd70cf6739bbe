"""YOLOv3 of arcgis.learn: Darknet-53 and three heads, in one list of modules.

    0 .. 10     Darknet-53; 6 and 8 are kept for the finer heads
    11 .. 14    stride 32: 14 detects
    15 .. 22    stride 16: from 12, enlarged (16), beside 8; 22 detects
    23 .. 28    stride 8: from 20, enlarged (24), beside 6; 28 detects

Source:
    Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018; the numbers of the modules, one class a candidate,
    and suppression from the limit on are those of DeNA's PyTorch_YOLOv3.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelIncompatibleError
from ...models.definition import ModelDefinition
from ..protocol import Detector, DetectorSettings
from ..torch_common import Normaliser
from .dense import STRIDE, DenseDetector, Rules, candidates_first, load_network, suppressing_traits

FAMILY = "YOLOv3"
ANCHORS = (
    (10.0, 13.0), (16.0, 30.0), (33.0, 23.0), (30.0, 61.0), (62.0, 45.0), (59.0, 119.0), (116.0, 90.0), (156.0, 198.0),
    (373.0, 326.0),
)  # fmt: skip
"""Width and height in pixels, as made for COCO."""
MOST_OF_A_CLASS = 200
"""Most objects of one class in one tile."""

_HEADS = ((32, (6, 7, 8)), (16, (3, 4, 5)), (8, (0, 1, 2)))  # stride, anchors


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit, or the tile's size is not one that the network takes.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    n_bands, n_classes = len(definition.input.bands), len(definition.classes)
    _check_chip(definition)
    decoder = _Decoder(_read_anchors(definition), n_classes)
    network = load_network(lambda: _Network(n_bands, n_classes), state, f"{FAMILY} with darknet53", n_bands, settings)
    return DenseDetector(
        network,
        Normaliser(definition.input, settings.device),
        decoder,
        Rules(
            float(arguments["threshold"]), float(arguments["nms_overlap"]),
            is_inclusive=True, is_best_class_only=True, most=MOST_OF_A_CLASS,
        ),
        suppressing_traits(
            definition, is_fixed=not definition.tile.is_variable, max_detections=MOST_OF_A_CLASS * n_classes
        ),
    )  # fmt: skip


def _check_chip(definition: ModelDefinition) -> None:
    size = definition.tile.size
    if not definition.tile.is_variable and size % STRIDE:
        raise ModelIncompatibleError(
            f"{FAMILY} takes tiles whose side is a multiple of {STRIDE} pixels, and the definition says {size}.",
            hint=f"Set ImageHeight and ImageWidth in the model definition to {-(-size // STRIDE) * STRIDE}.",
        )


def _read_anchors(definition: ModelDefinition) -> tuple[tuple[float, float], ...]:
    anchors = tuple((float(w), float(h)) for w, h in definition.options.get("anchors") or ANCHORS)
    if len(anchors) != len(ANCHORS):
        raise ModelIncompatibleError(
            f"{FAMILY} has {len(ANCHORS)} anchors, and the definition names {len(anchors)}.",
            hint="Set ModelParameters.anchors in the model definition to the nine [width, height] of the training.",
        )
    return anchors


def _conv(n_in: int, n_out: int, filter_size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, filter_size, stride, padding=(filter_size - 1) // 2, bias=False)
    return nn.Sequential(
        OrderedDict([("conv", conv), ("batch_norm", nn.BatchNorm2d(n_out)), ("leaky", nn.LeakyReLU(0.1))])
    )


class _Blocks(nn.Module):
    """Pairs of convolutions; in the backbone each pair adds to what went in."""

    def __init__(self, n_channels: int, n_blocks: int, *, is_residual: bool = True) -> None:
        super().__init__()
        pairs = [
            nn.Sequential(_conv(n_channels, n_channels // 2, 1), _conv(n_channels // 2, n_channels, 3))
            for _ in range(n_blocks)
        ]
        self.module_list = nn.ModuleList(pairs)
        self._is_residual = is_residual

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        for pair in self.module_list:
            inner = pair(maps)
            maps = maps + inner if self._is_residual else inner
        return maps


class _Detection(nn.Module):
    """The last convolution of a head."""

    def __init__(self, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_channels, 3 * (n_classes + 5), 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        raw: torch.Tensor = self.conv(maps)
        return raw


def _modules(n_bands: int, n_classes: int) -> list[nn.Module]:
    return [
        _conv(n_bands, 32, 3),
        _conv(32, 64, 3, stride=2), _Blocks(64, 1),
        _conv(64, 128, 3, stride=2), _Blocks(128, 2),
        _conv(128, 256, 3, stride=2), _Blocks(256, 8),
        _conv(256, 512, 3, stride=2), _Blocks(512, 8),
        _conv(512, 1024, 3, stride=2), _Blocks(1024, 4),
        _Blocks(1024, 2, is_residual=False), _conv(1024, 512, 1), _conv(512, 1024, 3), _Detection(1024, n_classes),
        _conv(512, 256, 1), nn.Upsample(scale_factor=2), _conv(768, 256, 1), _conv(256, 512, 3),
        _Blocks(512, 1, is_residual=False), _conv(512, 256, 1), _conv(256, 512, 3), _Detection(512, n_classes),
        _conv(256, 128, 1), nn.Upsample(scale_factor=2), _conv(384, 128, 1), _conv(128, 256, 3),
        _Blocks(256, 2, is_residual=False), _Detection(256, n_classes),
    ]  # fmt: skip


class _Network(nn.Module):
    """Gives the raw maps (N, 3 * (5 + C), H, W) of the three heads, the coarsest first."""

    def __init__(self, n_bands: int, n_classes: int) -> None:
        super().__init__()
        self.module_list = nn.ModuleList(_modules(n_bands, n_classes))

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        fine = self._run(0, 6, images)
        middle = self._run(7, 8, fine)
        coarse = self._run(9, 12, middle)
        up = self._run(15, 16, coarse)
        half = self._run(17, 20, torch.cat([up, middle], dim=1))
        up = self._run(23, 24, half)
        return [
            self._run(13, 14, coarse),
            self._run(21, 22, half),
            self._run(25, 28, torch.cat([up, fine], dim=1)),
        ]

    def _run(self, first: int, last: int, maps: torch.Tensor) -> torch.Tensor:
        for module in self.module_list[first : last + 1]:
            maps = module(maps)
        return maps


@dataclass(frozen=True)
class _Decoder:
    """From raw maps to boxes and scores.

    Args:
        anchors: Width and height in pixels.
        n_classes: Classes that follow x, y, w, h and objectness.
    """

    anchors: tuple[tuple[float, float], ...]
    n_classes: int

    def __call__(self, raw: list[torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode, see `dense.Decode`."""
        levels = [self._level(maps, stride, anchors) for maps, (stride, anchors) in zip(raw, _HEADS)]
        boxes, scores = (torch.cat(parts, dim=1) for parts in zip(*levels))
        # arcgis.learn divides by the last pixel's number and multiplies by the number of pixels.
        return boxes * (side / (side - 1)), scores

    def _level(self, maps: torch.Tensor, stride: int, masked: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        n_rows, n_columns = maps.shape[-2:]
        values = candidates_first(maps, self.n_classes + 5)
        rows, columns = torch.meshgrid(
            torch.arange(n_rows, device=maps.device), torch.arange(n_columns, device=maps.device), indexing="ij"
        )
        cells = torch.stack([columns, rows], dim=-1).reshape(-1, 2).repeat_interleave(len(masked), dim=0)
        anchors = torch.tensor([self.anchors[index] for index in masked], dtype=torch.float32, device=maps.device)
        centres = (values[..., :2].sigmoid() + cells) * stride
        sizes = values[..., 2:4].exp() * anchors.repeat(n_rows * n_columns, 1)
        scores = values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()
        return torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1), scores
