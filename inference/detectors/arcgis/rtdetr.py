"""RTDetrV2 of arcgis.learn: the published RT-DETR v2 on resnet18vd to resnet101vd, its sizes read off its weights.

Labels are one more than the classes: label 0 is background, label k the k-th class. The network needs no suppression;
nms_overlap applies all the same, as it does in ArcGIS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...errors import ModelIncompatibleError
from ...models.definition import ModelDefinition
from ..protocol import Detector, DetectorSettings
from ..torch_common import Normaliser
from .dense import DenseDetector, Rules, load_network, suppressing_traits, unsupported_backbone
from .rtdetr_backbone import DEPTHS, N_FEATURES
from .rtdetr_network import Layout, RtDetr

FAMILY = "RTDetrV2"
N_QUERIES = 300

_STRIDE = 32  # of the coarsest features: every side of an image is a multiple
_N_HEADS = 8
_N_STAGES = 4
_NOT_USED = re.compile(
    r"(decoder\.(anchors|valid_mask|denoising_class_embed\.weight)|encoder\.pos_embed\d+"
    r"|decoder\.decoder\.layers\.\d+\.cross_attn\.num_points_scale)$"
)
"""Tensors that follow from the tiles' size or the layout, or serve training only."""
_BACKBONES = f"Backbones: {', '.join(DEPTHS.values())}."


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network that the weights are for, and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit the definition, or are of another network.
        ModelUnsupportedError: a backbone that Kestrel does not build.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    side = definition.tile.size
    if side % _STRIDE:
        raise ModelIncompatibleError(
            f"The model's tiles are {side} pixels wide; an {FAMILY} takes multiples of {_STRIDE} only.",
            hint="Set ImageHeight and ImageWidth in the model definition to the size of the training chips.",
        )
    layout = read_layout(definition, state)
    backbone = DEPTHS[layout.blocks, layout.is_bottleneck]
    used = {name: tensor for name, tensor in state.items() if not _NOT_USED.match(name)}
    network = load_network(
        lambda: RtDetr(layout), used, f"{FAMILY} with {backbone}", len(definition.input.bands), settings
    )
    return DenseDetector(
        network,
        Normaliser(definition.input, settings.device),
        decode,
        Rules(float(arguments["threshold"]), float(arguments["nms_overlap"])),
        suppressing_traits(definition, is_fixed=not definition.tile.is_variable, max_detections=layout.n_queries),
    )


def decode(output: tuple[torch.Tensor, torch.Tensor], side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Give boxes and scores of the classes.

    No more pairs of query and label than there are queries count, the best ones; the others' scores become -1.

    Shape:
        output (N, Q, labels) and (N, Q, 4), see `RtDetr.forward`; gives (N, Q, 4), x0 y0 x1 y1 in pixels, and
        (N, Q, labels - 1).
    """
    logits, boxes = output
    scores = logits.sigmoid()
    least = scores.flatten(1).topk(scores.shape[1], dim=1).values[:, -1]
    scores = torch.where(scores < least[:, None, None], -1.0, scores)
    centres, halves = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centres - halves, centres + halves], dim=-1) * side, scores[..., 1:]


# -- The layout, read off the weights ----------------------------------------------------------------------------------


def read_layout(definition: ModelDefinition, state: Mapping[str, torch.Tensor]) -> Layout:
    """Give the sizes of the network that these weights are for.

    Raises:
        ModelIncompatibleError: they are not those of an RT-DETR v2, or of other classes than the definition's.
        ModelUnsupportedError: a backbone that Kestrel does not build.
    """
    options, shapes = definition.options, _Shapes(state)
    blocks, is_bottleneck = _backbone(shapes, str(options.get("backbone") or "unknown"))
    n_labels = len(definition.classes) + 1
    width_of_scores = shapes.of("decoder.dec_score_head.0.weight", 2)[0]
    if width_of_scores != n_labels:
        raise ModelIncompatibleError(
            f"The weights of {FAMILY} are for {width_of_scores - 1} classes (tensor 'decoder.dec_score_head.0.weight' "
            f"[{width_of_scores}, ...]), and the definition has {n_labels - 1}.",
            hint="List the classes of the training in the model definition, in their order.",
        )
    width = shapes.of("encoder.input_proj.0.conv.weight", 4)[0]
    n_attentive = shapes.count("encoder.encoder")
    n_layers = shapes.count("decoder.decoder.layers")
    points, n_heads = _points(shapes)
    own_content = "decoder.tgt_embed.weight"
    n_queries = shapes.of(own_content, 2)[0] if own_content in state else int(options.get("n_queries") or N_QUERIES)
    layout = Layout(
        n_bands=shapes.of("backbone.conv1.conv1_1.conv.weight", 4)[1],
        n_labels=n_labels,
        blocks=blocks,
        is_bottleneck=is_bottleneck,
        width=width,
        encoder_inner=shapes.of("encoder.encoder.0.layers.0.linear1.weight", 2)[0] if n_attentive else width,
        n_encoder_layers=tuple(shapes.count(f"encoder.encoder.{i}.layers") for i in range(n_attentive)),
        fusion_width=shapes.of("encoder.fpn_blocks.0.conv1.conv.weight", 4)[0],
        n_fusion_blocks=shapes.count("encoder.fpn_blocks.0.bottlenecks"),
        decoder_width=shapes.of("decoder.input_proj.0.conv.weight", 4)[0],
        decoder_inner=shapes.of("decoder.decoder.layers.0.linear1.weight", 2)[0],
        n_decoder_layers=n_layers,
        n_heads=n_heads,
        points=points,
        n_queries=n_queries,
        has_own_content=own_content in state,
        has_one_score=shapes.of("decoder.enc_score_head.weight", 2)[0] == 1,
        is_discrete=options.get("cross_attn_method") == "discrete",
    )
    _check(layout)
    return layout


class _Shapes:
    """The tensors' shapes, asked for by name."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        self._state = state

    def has(self, name: str) -> bool:
        """Tell whether there is a tensor of that name."""
        return name in self._state

    def of(self, name: str, n_axes: int) -> tuple[int, ...]:
        """Give the shape of a tensor that must be there, with so many axes."""
        tensor = self._state.get(name)
        if tensor is None or tensor.dim() != n_axes:
            what = "is missing" if tensor is None else f"has {tensor.dim()} axes, expected {n_axes}"
            raise _misfit(f"'{name}' {what}")
        return tuple(tensor.shape)

    def count(self, prefix: str) -> int:
        """Count the numbered parts below a name."""
        found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in self._state)
        return len({match.group(1) for match in found if match})

    def numbers(self, name: str) -> list[float]:
        """Give a tensor's values, none where there is no such tensor."""
        return [float(value) for value in self._state[name].flatten()] if name in self._state else []


def _backbone(shapes: _Shapes, stated: str) -> tuple[tuple[int, ...], bool]:
    """Give the blocks of each stage, and whether they are bottlenecks."""
    blocks = tuple(shapes.count(f"backbone.res_layers.{stage}.blocks") for stage in range(_N_STAGES))
    is_bottleneck = shapes.has("backbone.res_layers.0.blocks.0.branch2c.conv.weight")
    is_variant_d = shapes.has("backbone.conv1.conv1_3.conv.weight")
    if (blocks, is_bottleneck) not in DEPTHS or not is_variant_d:
        raise unsupported_backbone(FAMILY, stated, _BACKBONES)
    return blocks, is_bottleneck


def _points(shapes: _Shapes) -> tuple[tuple[int, ...], int]:
    """Give the points on each level, and the number of heads: for n points the weights hold n times 1 / n."""
    n_levels = shapes.count("decoder.input_proj")
    attention = "decoder.decoder.layers.0.cross_attn"
    n_all = shapes.of(f"{attention}.attention_weights.weight", 2)[0]
    scales = shapes.numbers(f"{attention}.num_points_scale")
    if not scales:
        return (max(n_all // _N_HEADS // max(n_levels, 1), 1),) * n_levels, _N_HEADS
    points: list[int] = []
    while sum(points) < len(scales):
        scale = scales[sum(points)]
        points.append(round(1 / scale) if 0 < scale <= 1 else 0)
        if not points[-1]:
            break
    if sum(points) != len(scales) or len(points) != n_levels or n_all % len(scales):
        raise _misfit(f"'{attention}.num_points_scale' is not that of points on {n_levels} levels")
    return tuple(points), n_all // len(scales)


def _check(layout: Layout) -> None:
    """Refuse sizes that no network of this kind has, where it could be built all the same, or not at all."""
    if len(layout.points) != N_FEATURES:
        raise _misfit(f"'decoder.input_proj' has {len(layout.points)} levels, expected {N_FEATURES}")
    if len(layout.n_encoder_layers) > N_FEATURES:
        raise _misfit(f"'encoder.encoder' has {len(layout.n_encoder_layers)} levels, expected {N_FEATURES} at most")
    for name, width in (("encoder", layout.width), ("decoder", layout.decoder_width)):
        if width % layout.n_heads or width % 4:
            raise _misfit(f"'{name}.input_proj.0.conv.weight' gives {width} channels for {layout.n_heads} heads")


def _misfit(what: str) -> ModelIncompatibleError:
    return ModelIncompatibleError(
        f"The weights do not fit {FAMILY}: {what}.",
        hint="Kestrel builds the published RT-DETR v2 with a PResNet backbone.",
    )
