"""DeepForest's RetinaNet: torchvision's, on a resnet50 with a feature pyramid, without a label for the background.

Source:
    Weinstein et al., "DeepForest: A Python package for RGB deep learning tree crown delineation", 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn

from ...models.definition import ModelDefinition
from ..old_names import RETINANET, with_new_names
from ..protocol import Detector, DetectorSettings, Traits
from ..torch_common import Normaliser, TileTransform, check_bands, check_classes, fill, make_ready, widen
from ..torchvision_detector import MAX_DETECTIONS, TorchvisionDetector

_WHAT = "DeepForest's RetinaNet"
_PREFIX = "model."  # of weights that were saved with the program around them
_ZOOM = 2.0  # torchvision brings DeepForest's patches of 400 pixels to 800
_ANCHORS_PER_CELL = 9


def build(
    definition: ModelDefinition, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any],
    settings: DetectorSettings,
) -> Detector:  # fmt: skip
    """Build the network and fill it.

    Raises:
        ModelIncompatibleError: the weights do not fit; it names the first tensor that does not.
        DeviceUnavailableError: the device does not exist or cannot be used.
    """
    state = with_new_names(_without_prefix(state), RETINANET)
    n_classes, n_bands = len(definition.classes), len(definition.input.bands)
    check_bands(state, "backbone.body.conv1.weight", n_bands, _WHAT)
    check_classes(
        state, "head.classification_head.cls_logits.weight", _ANCHORS_PER_CELL * n_classes, _ANCHORS_PER_CELL, _WHAT
    )
    network = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=n_classes, detections_per_img=MAX_DETECTIONS,
        score_thresh=float(arguments["threshold"]), nms_thresh=float(arguments["nms_overlap"]),
    )  # fmt: skip
    widen(network, n_bands)
    fill(network, state, _WHAT)
    _set_epsilon(network, state)
    network.transform = TileTransform(float(definition.options.get("resize") or _ZOOM))
    traits = Traits(
        stride=definition.tile.stride or 1, receptive_field_radius=None, is_dense=False, max_detections=MAX_DETECTIONS
    )
    return TorchvisionDetector(make_ready(network, settings), Normaliser(definition.input, settings.device), 0, traits)


def _without_prefix(state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Give the network's own weights, where others may stand beside them."""
    own = {name[len(_PREFIX) :]: tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
    return own or state


def _set_epsilon(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Divide by the variances as in training.

    DeepForest starts from torchvision's published network, whose batch norms are frozen and add nothing to their
    variances. Weights of frozen norms are known by the counters that they lack.
    """
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    is_frozen = not any(name.endswith("num_batches_tracked") for name in state)
    if is_frozen and all(bool((tensor > 0).all()) for tensor in variances):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
