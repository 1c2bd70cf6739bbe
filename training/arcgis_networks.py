"""Two of arcgis.learn's networks for training, written apart from the ones that Kestrel runs.

They prove that weights trained by others find their place in Kestrel's networks: the names and shapes of the tensors
are arcgis.learn's, and the way from boxes to activations here is the inverse of the way back there. One class, boxes
yxyx in shares of the image's side (0 to 1) inside, xyxy in pixels outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

WIDTH = 256


def centres_of(rows: int, columns: int) -> Tensor:
    """Give the middles of a grid's cells, row by row: (rows * columns, 2), y x, 0 to 1."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([y.reshape(-1), x.reshape(-1)], 1)


def repeat_for(centres: Tensor, sizes: Tensor) -> Tensor:
    """Give centre and size of every anchor, cell by cell: (cells * sizes, 4), y x h w."""
    n = len(centres)
    return torch.cat([centres[:, None].expand(n, len(sizes), 2), sizes[None].expand(n, len(sizes), 2)], 2).reshape(
        -1, 4
    )


def as_corners(centred: Tensor, side: float) -> Tensor:
    """Take boxes (..., 4), y x h w in shares, to x0 y0 x1 y1 in pixels."""
    y, x, h, w = centred.unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1) * side


class Sides(nn.Module):
    """One output grid of the SSD: convolutions to scores and to boxes."""

    def __init__(self, n_anchors: int) -> None:
        """Make the two convolutions; the background has a score of its own."""
        super().__init__()
        self.oconv1 = nn.Conv2d(WIDTH, 2 * n_anchors, 3, padding=1)
        self.oconv2 = nn.Conv2d(WIDTH, 4 * n_anchors, 3, padding=1)


class Shrink(nn.Module):
    """One step of the SSD's head."""

    def __init__(self, channels: int, stride: int) -> None:
        """Make the convolution."""
        super().__init__()
        self.conv = nn.Conv2d(channels, WIDTH, 3, stride, 1)
        self.bn = nn.BatchNorm2d(WIDTH)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, rectify, normalise."""
        return self.bn(functional.relu(self.conv(maps)))


class TrainedSSD(nn.Module):
    """A SingleShotDetector of version 2 for tiles of 256 pixels: resnet18 without its last layer, grids 16 and 8."""

    grids = (16, 8)
    zooms = (2.0, 2.8, 4.0)

    def __init__(self) -> None:
        """Make body and head."""
        super().__init__()
        body = nn.Sequential(*list(resnet18(weights=None).children())[:-3])
        head = nn.Module()
        head.sconvs = nn.ModuleList([Shrink(256, 1), Shrink(WIDTH, 1), Shrink(WIDTH, 2)])
        head.oconvs = nn.ModuleList([Sides(len(self.zooms)) for _ in self.grids])
        for side in head.oconvs:
            nn.init.constant_(side.oconv1.bias, -4.0)
        self.network = nn.ModuleList([body, head])
        sizes = [torch.tensor([[zoom / grid] * 2 for zoom in self.zooms]) for grid in self.grids]
        anchors = [repeat_for(centres_of(grid, grid), size) for grid, size in zip(self.grids, sizes, strict=True)]
        self.register_buffer("anchors", torch.cat(anchors), persistent=False)
        cells = [torch.full((len(part), 1), 1 / grid) for part, grid in zip(anchors, self.grids, strict=True)]
        self.register_buffer("cells", torch.cat(cells), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (N, A) of the one class and boxes (N, A, 4) in pixels."""
        body, head = self.network
        maps = head.sconvs[0](functional.relu(body(images)))
        scores, activations = [], []
        for step, side in zip(head.sconvs[1:], head.oconvs, strict=True):
            maps = step(maps)
            scores.append(side.oconv1(maps).permute(0, 2, 3, 1).reshape(len(images), -1, 2))
            activations.append(side.oconv2(maps).permute(0, 2, 3, 1).reshape(len(images), -1, 4))
        moved = torch.tanh(torch.cat(activations, 1).float())
        centres = moved[..., :2] / 2 * self.cells + self.anchors[:, :2]
        sizes = (moved[..., 2:] / 2 + 1) * self.anchors[:, 2:]
        return torch.cat(scores, 1)[..., 1].float(), as_corners(torch.cat([centres, sizes], -1), images.shape[-1])

    def settle_norms(self, batches: Sequence[Tensor]) -> None:
        """Do nothing: no two grids share a norm."""

    def weights(self) -> dict[str, Tensor]:
        """Give the state dict under arcgis.learn's names."""
        return {name.removeprefix("network."): value for name, value in self.state_dict().items()}

    @property
    def definition(self) -> dict[str, object]:
        """Give the members of the .emd that describe this network."""
        return {
            "ModelName": "SingleShotDetector",
            "ModelConfiguration": "_DynamicSSD",
            "backbone": "resnet18",
            "ModelParameters": {"backbone": "resnet18", "backend": "pytorch"},
            "Grids": list(self.grids),
            "Zooms": list(self.zooms),
            "Ratios": [[1.0, 1.0]],
            "SSDVersion": 2,
        }


def head_of(n_values: int) -> nn.Sequential:
    """Give one of the RetinaNet's two heads."""
    layers = [nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(WIDTH)) for _ in range(4)]
    return nn.Sequential(*layers, nn.Conv2d(WIDTH, n_values, 3, padding=1))


class TrainedRetinaNet(nn.Module):
    """A RetinaNet on resnet18, trained with the textbook's decoding of boxes."""

    scales: Sequence[float] = (1.0, 2 ** (-1 / 3), 2 ** (-2 / 3))
    ratios: Sequence[float] = (0.5, 1.0, 2.0)

    def __init__(self) -> None:
        """Make encoder, pyramid and heads."""
        super().__init__()
        self.encoder = nn.Sequential(*list(resnet18(weights=None).children())[:-2])
        self.c5top5 = nn.Conv2d(512, WIDTH, 1)
        self.c5top6 = nn.Conv2d(512, WIDTH, 3, 2, 1)
        self.p6top7 = nn.Sequential(nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1))
        self.merges = nn.ModuleList([nn.ModuleDict({"conv_lat": nn.Conv2d(n, WIDTH, 1)}) for n in (256, 128)])
        self.smoothers = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)])
        n_anchors = len(self.scales) * len(self.ratios)
        self.classifier, self.box_regressor = head_of(n_anchors), head_of(4 * n_anchors)
        nn.init.constant_(self.classifier[-1].bias, -4.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (N, A) of the one class and boxes (N, A, 4) in pixels."""
        levels = self._levels(images)
        logits = torch.cat([self._row(self.classifier(level), 1) for level in levels], 1)[..., 0].float()
        moved = torch.cat([self._row(self.box_regressor(level), 4) for level in levels], 1).float()
        anchors = torch.cat([self._anchors(level.shape[-2], level.shape[-1]) for level in levels])
        centres = anchors[:, :2] + 0.1 * moved[..., :2] * anchors[:, 2:]
        sizes = anchors[:, 2:] * torch.exp((0.2 * moved[..., 2:]).clamp(max=3))
        return logits, as_corners(torch.cat([centres, sizes], -1), images.shape[-1])

    def _levels(self, images: Tensor) -> list[Tensor]:
        maps, layers = images, []
        for number, layer in enumerate(self.encoder):
            maps = layer(maps)
            if number >= 5:
                layers.append(maps)
        c3, c4, c5 = layers
        p5, p6 = self.c5top5(c5), self.c5top6(c5)
        p4 = functional.interpolate(p5, scale_factor=2) + self.merges[0]["conv_lat"](c4)
        p3 = functional.interpolate(p4, scale_factor=2) + self.merges[1]["conv_lat"](c3)
        smooth = [smoother(level) for smoother, level in zip(self.smoothers, (p3, p4, p5), strict=True)]
        return [*smooth, p6, self.p6top7(p6)]

    def _row(self, maps: Tensor, n_values: int) -> Tensor:
        return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, n_values)

    def _anchors(self, rows: int, columns: int) -> Tensor:
        """Give a level's anchors: four cells wide at scale 1, the ratios in the outer loop."""
        sizes = [
            (4 * scale * math.sqrt(ratio) / rows, 4 * scale / math.sqrt(ratio) / columns)
            for ratio in self.ratios
            for scale in self.scales
        ]
        return repeat_for(centres_of(rows, columns), torch.tensor(sizes))

    @torch.no_grad()
    def settle_norms(self, batches: Sequence[Tensor]) -> None:
        """Measure the heads' norms on the finest level, where most objects are, and keep them from now on.

        In training each level is normalised by itself; one running mean over all of them would fit none afterwards.
        """
        norms = [layer for head in (self.classifier, self.box_regressor) for layer in head.modules()
                 if isinstance(layer, nn.BatchNorm2d)]  # fmt: skip
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all that is seen
        for images in batches:
            finest = self._levels(images)[0]
            self.classifier(finest)
            self.box_regressor(finest)
        for norm in norms:
            norm.eval()

    def weights(self) -> dict[str, Tensor]:
        """Give the state dict under arcgis.learn's names."""
        return self.state_dict()

    @property
    def definition(self) -> dict[str, object]:
        """Give the members of the .emd that describe this network."""
        return {
            "ModelName": "RetinaNet",
            "ModelConfiguration": "_RetinaNet_Inference",
            "ModelParameters": {
                "backbone": "resnet18",
                "backend": "pytorch",
                "scales": list(self.scales),
                "ratios": list(self.ratios),
            },
        }
