"""The backbone of RT-DETR: a residual network of the variant "vd", whose features come at strides 8, 16 and 32.

Three small convolutions begin it instead of a large one, and where a stage halves the image, its shortcut averages
pixels instead of skipping them. Names and shapes of its weights are those of the published RT-DETR v2.

Source:
    He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", 2019 (ResNet-D).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import cast

import torch
from torch import nn

_STEM = 64
_WIDTHS = (64, 128, 256, 512)
N_FEATURES = 3
_BOTTLENECK = 4  # times wider is a bottleneck block's output than its middle

DEPTHS: Mapping[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18vd",
    ((3, 4, 6, 3), False): "resnet34vd",
    ((3, 4, 6, 3), True): "resnet50vd",
    ((3, 4, 23, 3), True): "resnet101vd",
}
"""Name by the blocks of each stage, and whether these are bottlenecks."""


class ConvNorm(nn.Module):
    """A convolution that keeps the size, or halves it with stride 2, its batch norm, and an activation."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int, stride: int = 1, activation: type[nn.Module] = nn.Identity
    ) -> None:
        """Make the layers."""
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.act = activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the activated features."""
        return cast("torch.Tensor", self.act(self.norm(self.conv(x))))


class _Block(nn.Module):
    def __init__(self, n_in: int, width: int, stride: int, *, is_bottleneck: bool, is_first: bool) -> None:
        super().__init__()
        n_out = width * _BOTTLENECK if is_bottleneck else width
        if is_bottleneck:
            self.branch2a = ConvNorm(n_in, width, 1, activation=nn.ReLU)
            self.branch2b = ConvNorm(width, width, 3, stride, nn.ReLU)
            self.branch2c: nn.Module = ConvNorm(width, n_out, 1)
        else:
            self.branch2a = ConvNorm(n_in, width, 3, stride, nn.ReLU)
            self.branch2b = ConvNorm(width, width, 3)
            self.branch2c = nn.Identity()
        self.short: nn.Module = _shortcut(n_in, n_out, stride) if is_first else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch2c(self.branch2b(self.branch2a(x))) + self.short(x))


def _shortcut(n_in: int, n_out: int, stride: int) -> nn.Module:
    if stride == 1:
        return ConvNorm(n_in, n_out, 1)
    pool = nn.AvgPool2d(stride, stride, ceil_mode=True)
    return nn.Sequential(OrderedDict(pool=pool, conv=ConvNorm(n_in, n_out, 1)))


class _Stage(nn.Module):
    def __init__(self, n_in: int, width: int, n_blocks: int, stride: int, *, is_bottleneck: bool) -> None:
        super().__init__()
        n_out = width * _BOTTLENECK if is_bottleneck else width
        self.blocks = nn.ModuleList(
            _Block(
                n_out if index else n_in, width, 1 if index else stride, is_bottleneck=is_bottleneck, is_first=not index
            )
            for index in range(n_blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Backbone(nn.Module):
    """The residual network.

    Args:
        n_bands: Channels of the images.
        blocks: Blocks of each of the four stages.
        is_bottleneck: Blocks of three convolutions, the middle one narrow, instead of two.
    """

    def __init__(self, n_bands: int, blocks: tuple[int, ...], *, is_bottleneck: bool) -> None:
        """Make the layers."""
        super().__init__()
        half = _STEM // 2
        self.conv1 = nn.Sequential(
            OrderedDict(
                conv1_1=ConvNorm(n_bands, half, 3, 2, nn.ReLU),
                conv1_2=ConvNorm(half, half, 3, activation=nn.ReLU),
                conv1_3=ConvNorm(half, _STEM, 3, activation=nn.ReLU),
            )
        )
        self.pool = nn.MaxPool2d(3, 2, padding=1)
        outputs = [width * _BOTTLENECK if is_bottleneck else width for width in _WIDTHS]
        inputs = [_STEM, *outputs]
        self.res_layers = nn.ModuleList(
            _Stage(inputs[i], _WIDTHS[i], n_blocks, 2 if i else 1, is_bottleneck=is_bottleneck)
            for i, n_blocks in enumerate(blocks)
        )
        self.widths = tuple(outputs[-N_FEATURES:])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Give the features of the last three stages, the finest first."""
        x = self.pool(self.conv1(x))
        features = []
        for stage in self.res_layers:
            x = stage(x)
            features.append(x)
        return features[-N_FEATURES:]
