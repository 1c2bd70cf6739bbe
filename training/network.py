"""The detector: a purely convolutional, anchor-free network with one output level.

No operation looks at the whole image, so an output depends on a bounded neighbourhood only. Tiles that overlap by
that neighbourhood and start at multiples of :data:`ALIGNMENT` therefore give the same detections as one large image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
"""Input pixels between neighbouring outputs."""

ALIGNMENT = 16
"""Height, width and tile origins have to be multiples of this (the deepest stride), in pixels."""

LOG_SIZE_RANGE = (-3.0, 3.2)
"""Limits of the logarithm of a box side's distance from the cell centre, in strides."""


def conv_block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Build convolution, batch norm and SiLU.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Kernel side, odd.
        stride: Step in pixels of the input.

    Returns:
        A module from (N, inputs, H, W) to (N, outputs, H / stride, W / stride).
    """
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs, momentum=0.03), nn.SiLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions with a shortcut; (N, C, H, W) to the same shape."""

    def __init__(self, channels: int, first: int = 3, second: int = 3) -> None:
        """Create the block.

        Args:
            channels: Channels in and out.
            first: Kernel side of the first convolution; 1 adds depth without widening the receptive field.
            second: Kernel side of the second convolution.
        """
        super().__init__()
        self.body = nn.Sequential(conv_block(channels, channels, first), conv_block(channels, channels, second))

    def forward(self, features: Tensor) -> Tensor:
        """Add the body's output to the input.

        Args:
            features: (N, C, H, W).

        Returns:
            (N, C, H, W).
        """
        return features + self.body(features)


class CrownNet(nn.Module):
    """Tree-crown detector for 10 cm imagery.

    Args:
        widths: Channels at strides 2, 4, 8 and 16, and of the neck and head.
    """

    def __init__(self, widths: tuple[int, int, int, int, int] = (24, 40, 80, 128, 96)) -> None:
        """Create the layers with detection priors in the head's biases."""
        super().__init__()
        first, second, third, fourth, neck = widths
        self.fine = nn.Sequential(
            conv_block(3, first, stride=2),
            conv_block(first, second, stride=2),
            Residual(second),
            Residual(second, 3, 1),
            conv_block(second, third, stride=2),
            Residual(third),
            Residual(third),
        )
        self.coarse = nn.Sequential(
            conv_block(third, fourth, stride=2), Residual(fourth), Residual(fourth, 1, 1), conv_block(fourth, neck, 1)
        )
        self.merge = nn.Sequential(conv_block(third + neck, neck, 1), Residual(neck))
        self.score_tower = conv_block(neck, neck)
        self.box_tower = conv_block(neck, neck)
        self.score = nn.Conv2d(neck, 1, 1)
        self.sides = nn.Conv2d(neck, 4, 1)
        nn.init.constant_(self.score.bias, -3.5)
        nn.init.constant_(self.sides.bias, 0.9)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict score logits and the distances of the four box sides for every output cell.

        Args:
            images: (N, 3, H, W), values 0 to 255, any number type; H and W multiples of :data:`ALIGNMENT`.

        Returns:
            float32 logits (N, 1, H / 8, W / 8) and float32 distances (N, 4, H / 8, W / 8) from the cell centre to
            the left, top, right and bottom side, in pixels.
        """
        scaled = (images.float() - 128.0) * (1.0 / 64.0)
        fine = self.fine(scaled)
        coarse = functional.interpolate(self.coarse(fine), scale_factor=2.0, mode="nearest")
        features = self.merge(torch.cat((fine, coarse), 1))
        scores, sides = self.score_tower(features), self.box_tower(features)
        with torch.autocast("cpu", enabled=False):
            logits = self.score(scores.float())
            distances = self.sides(sides.float()).clamp(*LOG_SIZE_RANGE).exp() * STRIDE
        return logits, distances


def cell_centres(height: int, width: int) -> Tensor:
    """Return the centres of the output cells.

    Args:
        height: Rows of the output grid.
        width: Columns of the output grid.

    Returns:
        float32, (height * width, 2), x and y in input pixels, row by row.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack((columns, rows), -1).reshape(-1, 2).float() + 0.5) * STRIDE


def corner_boxes(distances: Tensor) -> Tensor:
    """Turn side distances into corner boxes.

    Args:
        distances: (N, 4, h, w), pixels, left, top, right, bottom.

    Returns:
        (N, h * w, 4), xmin, ymin, xmax, ymax in pixels.
    """
    centres = cell_centres(*distances.shape[2:])
    left_top, right_bottom = distances.flatten(2).transpose(1, 2).split(2, -1)
    return torch.cat((centres - left_top, centres + right_bottom), -1)


class ExportHead(nn.Module):
    """The network with a YOLOv8-style output, scores kept only at local peaks."""

    def __init__(self, network: CrownNet, scale: float = 1.0, offset: float = 0.0) -> None:
        """Wrap a network.

        Args:
            network: The network in evaluation mode.
            scale: Factor of the score's logit, above 0; calibrates the score.
            offset: Added to the scaled logit.
        """
        super().__init__()
        self.network, self.scale, self.offset = network, scale, offset

    def forward(self, images: Tensor) -> Tensor:
        """Predict boxes and scores.

        Args:
            images: uint8, (N, 3, H, W).

        Returns:
            float32, (N, 5, h * w): cx, cy, w, h in pixels and the score; the score is 0 where one of the eight
            neighbouring cells scores higher.
        """
        logits, distances = self.network(images)
        height, width = distances.shape[2:]
        x = ((torch.arange(width) + 0.5) * STRIDE).reshape(1, 1, width)
        y = ((torch.arange(height) + 0.5) * STRIDE).reshape(1, height, 1)
        left, top, right, bottom = distances.unbind(1)
        boxes = torch.stack((x + (right - left) * 0.5, y + (bottom - top) * 0.5, left + right, top + bottom), 1)
        peak = logits >= functional.max_pool2d(logits, 3, 1, 1)
        scores = torch.where(peak, (logits * self.scale + self.offset).sigmoid(), torch.zeros_like(logits))
        return torch.cat((boxes, scores), 1).flatten(2)
