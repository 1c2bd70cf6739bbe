"""FasterRCNN and MaskRCNN of arcgis.learn: torchvision's networks on a resnet.

The resnet carries a feature pyramid, or gives its last map alone; the names of the weights tell which.

    pyramid         backbone.body.layer1 ..., backbone.fpn.*; five levels, one size of anchors on each
    single level    backbone.4 ... (the resnet's children by number); 32 pixels a cell, anchors of 32 pixels

Source:
    Ren et al., "Faster R-CNN", 2015; He et al., "Mask R-CNN", 2017; names of the weights: torchvision, old and new.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from ...models.definition import ModelDefinition
from ..old_names import RCNN, with_new_names
from ..protocol import Detector, DetectorSettings, Traits
from ..torch_common import (
    Normaliser,
    TileTransform,
    check_bands,
    check_classes,
    create_body,
    fill,
    make_ready,
    widen,
)
from ..torchvision_detector import MAX_DETECTIONS, OutlineDetector, TorchvisionDetector, set_mask_branch
from .dense import unsupported_backbone

_BLOCKS = {
    "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}  # fmt: skip
_SMALL = ("resnet18", "resnet34")  # whose blocks have two convolutions, and which end 512 channels wide
_PYRAMID_LAYERS = tuple(f"backbone.body.layer{n}" for n in (1, 2, 3, 4))
_SINGLE_LAYERS = tuple(f"backbone.{n}" for n in (4, 5, 6, 7))

_ANCHORS = (32, 64, 128, 256, 512)
_RATIOS = (0.5, 1.0, 2.0)
_ZOOM = 1.5  # pixels of the network in one of the tile
_OLD_MOST = 1333  # longest side that the network saw before arcgis.learn enlarged its tiles

_COUNTS = ("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test", "box_detections_per_img")
_SHARES = ("rpn_nms_thresh", "rpn_score_thresh")
_MOST_COUNT = 10_000


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network that the definition's options and the names of the weights describe, and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit; it names the first tensor that does not.
        ModelUnsupportedError: a backbone that Kestrel does not build.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    family, state = str(definition.options["family"]), with_new_names(state, RCNN)
    found = _backbone_of(state)
    backbone = str(definition.options.get("backbone") or found or "resnet50")
    what = f"{family} with {backbone}"
    _check(state, definition, what)
    network: Any = _network(definition, state, backbone, arguments)
    fill(network, state, what, f"The weights look like those of {found}." if found not in ("", backbone) else "")
    network.transform = _transform(definition.options)
    wants_outlines = family == "MaskRCNN" and not arguments.get("return_bboxes", False)
    if family == "MaskRCNN":
        set_mask_branch(network.roi_heads, is_used=wants_outlines)
    detector = OutlineDetector if wants_outlines else TorchvisionDetector
    traits = Traits(
        # Enlarged by 1.5, the network moves with its image by no whole number of pixels. 1 leaves tiles as they are.
        stride=definition.tile.stride or 1,
        receptive_field_radius=None,
        is_dense=False,
        max_detections=network.roi_heads.detections_per_img,
        geometry="polygon" if wants_outlines else "box",
    )
    return detector(make_ready(network, settings), Normaliser(definition.input, settings.device), 1, traits)


def _has_pyramid(state: Mapping[str, torch.Tensor]) -> bool:
    return any(name.startswith(("backbone.fpn.", "backbone.body.")) for name in state)


def _backbone_of(state: Mapping[str, torch.Tensor]) -> str:
    """Recognise the resnet by the number of blocks in its layers; empty: none of those that are known."""
    layers = _PYRAMID_LAYERS if _has_pyramid(state) else _SINGLE_LAYERS
    counts = tuple(
        len({name[len(layer) + 1 :].split(".")[0] for name in state if name.startswith(f"{layer}.")})
        for layer in layers
    )
    is_small = f"{layers[0]}.0.conv3.weight" not in state
    return next((name for name, blocks in _BLOCKS.items() if blocks == counts and (name in _SMALL) == is_small), "")


def _check(state: Mapping[str, torch.Tensor], definition: ModelDefinition, what: str) -> None:
    """Refuse the two mistakes that a definition can hold, in its own words."""
    first = "backbone.body.conv1.weight" if _has_pyramid(state) else "backbone.0.weight"
    n_labels = len(definition.classes) + 1  # label 0 is the background
    check_bands(state, first, len(definition.input.bands), what)
    check_classes(state, "roi_heads.box_predictor.cls_score.weight", n_labels, 1, what)


def _network(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], backbone: str, arguments: Mapping[str, Any]
) -> nn.Module:
    options, n_bands = definition.options, len(definition.input.bands)
    if backbone not in _BLOCKS:
        raise unsupported_backbone(options["family"], backbone, f"Backbones: {', '.join(_BLOCKS)}.")
    has_pyramid = _has_pyramid(state)
    builder = MaskRCNN if options["family"] == "MaskRCNN" else FasterRCNN
    network: nn.Module = builder(
        _pyramid(backbone, n_bands) if has_pyramid else _single_level(backbone, n_bands),
        num_classes=len(definition.classes) + 1,
        rpn_anchor_generator=_anchors(state, has_pyramid=has_pyramid),
        **{
            "box_detections_per_img": MAX_DETECTIONS, **_limits(options.get("kwargs", {})),
            "box_score_thresh": float(arguments["threshold"]), "box_nms_thresh": float(arguments["nms_overlap"]),
        },
    )  # fmt: skip
    return network


def _pyramid(backbone: str, n_bands: int) -> Any:
    # Frozen batch norms differ from ordinary ones in training alone.
    body: Any = resnet_fpn_backbone(backbone_name=backbone, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
    widen(body, n_bands)
    return body


def _single_level(backbone: str, n_bands: int) -> Any:
    body: Any = create_body(backbone, n_bands)
    body.out_channels = 512 if backbone in _SMALL else 2048  # torchvision asks for it
    return body


def _anchors(state: Mapping[str, torch.Tensor], *, has_pyramid: bool) -> nn.Module:
    """Give the anchors: one size a level, or all sizes on each where the weights have scores for so many."""
    scores = state.get("rpn.head.cls_logits.weight")
    has_all = scores is not None and len(scores) == len(_ANCHORS) * len(_RATIOS)
    n_levels = len(_ANCHORS) if has_pyramid else 1
    sizes = tuple(_ANCHORS if has_all else (size,) for size in _ANCHORS[:n_levels])
    generator: nn.Module = AnchorGenerator(sizes, (_RATIOS,) * n_levels)
    return generator


def _limits(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Take from the package's arguments for torchvision the plain numbers that matter when a network is run."""
    numbers = {
        name: value for name, value in kwargs.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    counts = {name: min(max(int(numbers[name]), 1), _MOST_COUNT) for name in _COUNTS if name in numbers}
    return {**counts, **{name: float(numbers[name]) for name in _SHARES if name in numbers}}


def _transform(options: Mapping[str, Any]) -> nn.Module:
    if options.get("is_plain", False):
        return TileTransform(1.0, float(options.get("max_size") or _OLD_MOST))
    return TileTransform(float(options.get("resize") or _ZOOM))
