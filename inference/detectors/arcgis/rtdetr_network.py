"""RT-DETR v2: a detection transformer whose queries are chosen among the cells of its feature maps.

    backbone    features at strides 8, 16, 32
    encoder     self-attention within the coarsest ones, then fused downwards and upwards, all equally wide
    decoder     the best cells become queries, each with a box; every layer looks at a few points around a query's box,
                at all strides, and corrects the box

Names and shapes of the weights are those of the published RT-DETR v2.

Source:
    Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", 2024; Lv et al., "RT-DETRv2", 2024;
    Zhu et al., "Deformable DETR", 2021 (the attention to points).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from .rtdetr_backbone import Backbone, ConvNorm

_TEMPERATURE = 10000.0  # of the position embedding
_ANCHOR_SIDE = 0.05  # of the image: the first guess of a box, at the finest features; doubled at each coarser level
_MARGIN = 0.01  # anchors nearer to 0 or 1 are none
_EPSILON = 1e-5
_REACH = 0.5  # points lie this share of a box's side from its centre, times their offset


@dataclass(frozen=True)
class Layout:
    """The sizes of a network.

    Args:
        n_bands, n_labels: Channels of the images; labels that it gives scores for.
        blocks, is_bottleneck: See `Backbone`.
        width, encoder_inner, n_encoder_layers: Of the encoder: channels, of its feed-forward network, and its
            layers of self-attention, for each level that has any, counted from the coarsest.
        fusion_width, n_fusion_blocks: Channels inside the fusing blocks, and how many convolutions they have.
        decoder_width, decoder_inner, n_decoder_layers: The same of the decoder.
        n_heads: Heads of the attention.
        points: Points that each head looks at, for each level.
        n_queries: Most objects.
        has_own_content: Queries begin with contents of their own instead of those of the cells.
        has_one_score: Cells are chosen by a single score instead of the best label's.
        is_discrete: Points are rounded to cells instead of interpolated.
    """

    n_bands: int
    n_labels: int
    blocks: tuple[int, ...]
    is_bottleneck: bool
    width: int
    encoder_inner: int
    n_encoder_layers: tuple[int, ...]
    fusion_width: int
    n_fusion_blocks: int
    decoder_width: int
    decoder_inner: int
    n_decoder_layers: int
    n_heads: int
    points: tuple[int, ...]
    n_queries: int
    has_own_content: bool = False
    has_one_score: bool = False
    is_discrete: bool = False


class RtDetr(nn.Module):
    """The whole network."""

    def __init__(self, layout: Layout) -> None:
        """Make the layers."""
        super().__init__()
        self.backbone = Backbone(layout.n_bands, layout.blocks, is_bottleneck=layout.is_bottleneck)
        self.encoder = HybridEncoder(layout, self.backbone.widths)
        self.decoder = QueryDecoder(layout)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give the queries' logits and boxes.

        Shape:
            images (N, bands, S, S), S a multiple of 32; gives (N, queries, labels), and (N, queries, 4): centre x y,
            width, height, in shares of S.
        """
        logits, boxes = self.decoder(self.encoder(self.backbone(images)))
        return logits, boxes


# -- The encoder -------------------------------------------------------------------------------------------------------


def _projection(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(n_in, n_out, 1, bias=False), norm=nn.BatchNorm2d(n_out)))


def position_embedding(n_rows: int, n_columns: int, width: int) -> torch.Tensor:
    """Give sines and cosines of each cell's row and column, at falling frequencies.

    Shape:
        gives (n_rows * n_columns, width): sines and cosines of the row, then of the column. For square maps, the
        published network has it in this order.
    """
    n = width // 4
    frequencies = _TEMPERATURE ** -(torch.arange(n, dtype=torch.float32) / n)
    rows, columns = (torch.arange(count, dtype=torch.float32)[:, None] * frequencies for count in (n_rows, n_columns))
    by_row = torch.cat([rows.sin(), rows.cos()], dim=1).repeat_interleave(n_columns, dim=0)
    by_column = torch.cat([columns.sin(), columns.cos()], dim=1).repeat(n_rows, 1)
    return torch.cat([by_row, by_column], dim=1)


class _EncoderLayer(nn.Module):
    def __init__(self, width: int, inner: int, n_heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, n_heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        placed = x + positions
        x = self.norm1(x + self.self_attn(placed, placed, x, need_weights=False)[0])
        inner = functional.gelu(self.linear1(x))
        return cast("torch.Tensor", self.norm2(x + self.linear2(inner)))


class _Encoder(nn.Module):
    def __init__(self, width: int, inner: int, n_heads: int, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(width, inner, n_heads) for _ in range(n_layers))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        n_rows, n_columns = features.shape[2:]
        x = features.flatten(2).transpose(1, 2)
        positions = position_embedding(n_rows, n_columns, x.shape[2]).to(x)
        for layer in self.layers:
            x = layer(x, positions)
        return x.transpose(1, 2).reshape(features.shape)


class _RepVgg(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvNorm(width, width, 3), ConvNorm(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.silu(self.conv1(x) + self.conv2(x))


class _Fusion(nn.Module):
    """Two paths, one of them through several convolutions, added up."""

    def __init__(self, n_in: int, n_out: int, width: int, n_blocks: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (ConvNorm(n_in, width, 1, activation=nn.SiLU) for _ in range(2))
        self.bottlenecks = nn.Sequential(*(_RepVgg(width) for _ in range(n_blocks)))
        self.conv3: nn.Module = ConvNorm(width, n_out, 1, activation=nn.SiLU) if width != n_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x)))


class HybridEncoder(nn.Module):
    """Attention within the coarsest features, and fusion of all of them."""

    def __init__(self, layout: Layout, widths: Sequence[int]) -> None:
        """Make the layers; `widths`: channels of the backbone's features, the finest first."""
        super().__init__()
        width, n_steps = layout.width, len(widths) - 1
        self.input_proj = nn.ModuleList(_projection(n_in, width) for n_in in widths)
        self.encoder = nn.ModuleList(
            _Encoder(width, layout.encoder_inner, layout.n_heads, n) for n in layout.n_encoder_layers
        )

        def fusions() -> nn.ModuleList:
            sizes = (2 * width, width, layout.fusion_width, layout.n_fusion_blocks)
            return nn.ModuleList(_Fusion(*sizes) for _ in range(n_steps))

        self.lateral_convs = nn.ModuleList(ConvNorm(width, width, 1, activation=nn.SiLU) for _ in range(n_steps))
        self.fpn_blocks = fusions()
        self.downsample_convs = nn.ModuleList(ConvNorm(width, width, 3, 2, nn.SiLU) for _ in range(n_steps))
        self.pan_blocks = fusions()

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Give the fused features, the finest first."""
        levels = [project(x) for project, x in zip(self.input_proj, features)]
        first = len(levels) - len(self.encoder)
        levels[first:] = [encode(x) for encode, x in zip(self.encoder, levels[first:])]
        downwards = [levels[-1]]  # the coarsest first
        for lateral, fuse, finer in zip(self.lateral_convs, self.fpn_blocks, levels[-2::-1]):
            downwards[-1] = lateral(downwards[-1])
            enlarged = functional.interpolate(downwards[-1], scale_factor=2.0, mode="nearest")
            downwards.append(fuse(torch.cat([enlarged, finer], dim=1)))
        upwards = [downwards[-1]]
        for reduce, fuse, coarser in zip(self.downsample_convs, self.pan_blocks, downwards[-2::-1]):
            upwards.append(fuse(torch.cat([reduce(upwards[-1]), coarser], dim=1)))
        return upwards


# -- The decoder -------------------------------------------------------------------------------------------------------


class _Mlp(nn.Module):
    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in zip(widths, widths[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in list(self.layers)[:-1]:
            x = torch.relu(layer(x))
        return cast("torch.Tensor", self.layers[-1](x))


def sample(
    values: torch.Tensor, shapes: Sequence[tuple[int, int]], places: torch.Tensor, weights: torch.Tensor,
    points: Sequence[int], *, is_discrete: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Give the weighted sums of what stands at some places of several maps.

    Args:
        values: The maps' cells in one row, map after map, each row by row.
        shapes: Rows and columns of each map.
        places: Where to look, x y in shares of the map: 0 is the outer edge of its first cell, 1 that of its last.
        weights: Of the places.
        points: Number of places on each map.
        is_discrete: Take the nearest cell, and at the border the last one; else interpolate, with zeros outside.

    Shape:
        values (N, cells, heads, width), places (N, queries, heads, all points, 2), weights (N, queries, heads, all
        points); gives (N, queries, heads * width).
    """
    n, _, n_heads, width = values.shape
    n_queries = places.shape[1]
    by_head = values.permute(0, 2, 3, 1).flatten(0, 1)
    maps = torch.split(by_head, [rows * columns for rows, columns in shapes], dim=2)
    spots = torch.split(places.transpose(1, 2).flatten(0, 1), list(points), dim=2)
    look = _nearest if is_discrete else _interpolated
    seen = torch.cat(
        [look(cells.reshape(*cells.shape[:2], *shape), spot) for cells, shape, spot in zip(maps, shapes, spots)], dim=3
    )  # (N * heads, width, queries, all points)
    total = (seen * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(3)
    return total.reshape(n, n_heads * width, n_queries).transpose(1, 2)


def _interpolated(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return functional.grid_sample(image, 2 * places - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


def _nearest(image: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    n_rows, n_columns = image.shape[2:]
    # Rounded half a cell off: this is what networks of this kind were trained with.
    column = (places[..., 0] * n_columns + 0.5).long().clamp(0, n_columns - 1)
    row = (places[..., 1] * n_rows + 0.5).long().clamp(0, n_rows - 1)
    index = (row * n_columns + column).flatten(1)[:, None].expand(-1, image.shape[1], -1)
    return image.flatten(2).gather(2, index).reshape(*image.shape[:2], *column.shape[1:])


class PointAttention(nn.Module):
    """Attention of boxes to points around them, on maps of several sizes (multi-scale deformable attention)."""

    def __init__(self, width: int, n_heads: int, points: Sequence[int], *, is_discrete: bool) -> None:
        """Make the layers."""
        super().__init__()
        self._n_heads, self._points, self._is_discrete = n_heads, tuple(points), is_discrete
        n_points = n_heads * sum(points)
        self.sampling_offsets = nn.Linear(width, 2 * n_points)
        self.attention_weights = nn.Linear(width, n_points)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, queries: torch.Tensor, boxes: torch.Tensor, cells: torch.Tensor, shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Give what the queries see.

        Shape:
            queries (N, Q, width), boxes (N, Q, 4): centre and size in shares of the image, cells (N, all cells,
            width); gives (N, Q, width).
        """
        n, n_queries = queries.shape[:2]
        values = self.value_proj(cells).reshape(n, cells.shape[1], self._n_heads, -1)
        offsets = self.sampling_offsets(queries).reshape(n, n_queries, self._n_heads, -1, 2)
        weights = self.attention_weights(queries).reshape(n, n_queries, self._n_heads, -1).softmax(-1)
        shares = torch.cat([offsets.new_full((n,), 1 / n) for n in self._points])[:, None]
        centres, sizes = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
        places = centres + offsets * shares * sizes * _REACH
        seen = sample(values, shapes, places, weights, self._points, is_discrete=self._is_discrete)
        return cast("torch.Tensor", self.output_proj(seen))


class _DecoderLayer(nn.Module):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        width, inner = layout.decoder_width, layout.decoder_inner
        self.self_attn = nn.MultiheadAttention(width, layout.n_heads, batch_first=True)
        self.cross_attn = PointAttention(width, layout.n_heads, layout.points, is_discrete=layout.is_discrete)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, boxes: torch.Tensor, cells: torch.Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:  # fmt: skip
        placed = x + positions
        x = self.norm1(x + self.self_attn(placed, placed, x, need_weights=False)[0])
        x = self.norm2(x + self.cross_attn(x + positions, boxes, cells, shapes))
        return cast("torch.Tensor", self.norm3(x + self.linear2(torch.relu(self.linear1(x)))))


class _Layers(nn.Module):
    """The decoder's layers under the name that the weights have for them."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_DecoderLayer(layout) for _ in range(layout.n_decoder_layers))


def anchors(shapes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the first guess of a box for each cell, as logits, and which of them count.

    Shape:
        gives (cells, 4), infinite where it does not count, and (cells, 1).
    """
    levels = []
    for level, (n_rows, n_columns) in enumerate(shapes):
        y, x = ((torch.arange(n, dtype=torch.float32) + 0.5) / n for n in (n_rows, n_columns))
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        levels.append(torch.cat([grid, torch.full_like(grid, _ANCHOR_SIDE * 2**level)], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)
    counts = ((boxes > _MARGIN) & (boxes < 1 - _MARGIN)).all(1, keepdim=True)
    return torch.where(counts, boxes.logit(), torch.inf), counts


def corrected(boxes: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Give boxes in 0..1 after a change of their logits."""
    high, low = boxes.clamp(min=_EPSILON), (1 - boxes).clamp(min=_EPSILON)
    return torch.sigmoid(change + torch.log(high / low))


class QueryDecoder(nn.Module):
    """From features to the queries' logits and boxes."""

    def __init__(self, layout: Layout) -> None:
        """Make the layers."""
        super().__init__()
        width, n_labels, n_layers = layout.decoder_width, layout.n_labels, layout.n_decoder_layers
        self._n_queries = layout.n_queries
        self.input_proj = nn.ModuleList(_projection(layout.width, width) for _ in layout.points)
        self.decoder = _Layers(layout)
        self.tgt_embed = nn.Embedding(layout.n_queries, width) if layout.has_own_content else None
        self.query_pos_head = _Mlp(4, 2 * width, width)
        self.enc_output = nn.Sequential(OrderedDict(proj=nn.Linear(width, width), norm=nn.LayerNorm(width)))
        self.enc_score_head = nn.Linear(width, 1 if layout.has_one_score else n_labels)
        self.enc_bbox_head = _Mlp(width, width, width, 4)
        self.dec_score_head = nn.ModuleList(nn.Linear(width, n_labels) for _ in range(n_layers))
        self.dec_bbox_head = nn.ModuleList(_Mlp(width, width, width, 4) for _ in range(n_layers))

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give logits (N, queries, labels) and boxes (N, queries, 4), see `RtDetr.forward`."""
        maps = [project(x) for project, x in zip(self.input_proj, features)]
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        cells = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)
        x, boxes = self._queries(cells, shapes)
        for layer, correct in zip(self.decoder.layers, self.dec_bbox_head):
            x = layer(x, self.query_pos_head(boxes), boxes, cells, shapes)
            boxes = corrected(boxes, correct(x))
        return self.dec_score_head[-1](x), boxes

    def _queries(self, cells: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the cells that become queries, and give their contents and first boxes."""
        first, counts = (part.to(cells.device) for part in anchors(shapes))
        contents = self.enc_output(cells * counts)
        scores = self.enc_score_head(contents).amax(2)
        chosen = scores.topk(min(self._n_queries, scores.shape[1]), dim=1).indices[:, :, None]
        boxes = (self.enc_bbox_head(contents) + first).gather(1, chosen.expand(-1, -1, 4)).sigmoid()
        if self.tgt_embed is not None:
            return self.tgt_embed.weight[: chosen.shape[1]].expand(len(cells), -1, -1), boxes
        return contents.gather(1, chosen.expand(-1, -1, contents.shape[2])), boxes
