"""torchvision's detection networks, built by torchvision and filled from a state dict: safetensors, or .pth as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models import detection

from ..detections import Detections, make_detections
from ..errors import ModelIncompatibleError, ModelUnsupportedError
from ..models.package import ModelPackage
from .arcgis.masks import outlines
from .old_names import FCOS, RCNN, RETINANET, Names, with_new_names
from .protocol import DetectorSettings, Traits
from .torch_common import Normaliser, TileTransform, fill, make_ready, translated
from .weights import read_state

MAX_DETECTIONS = 1000
"""Most objects of one tile; torchvision's 100 to 300 lose objects in dense scenes."""

_RCNN = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
         "fasterrcnn_mobilenet_v3_large_320_fpn")  # fmt: skip
_MASKED = ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2")
_ONE_STAGE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
              "ssdlite320_mobilenet_v3_large")  # fmt: skip
_FIXED_SIZE = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
_N_BANDS = 3
_STRIDE = 128  # of the coarsest pyramid level that one of these networks uses


_PART = 128  # masks that go through their branch together; all at once can be a gigabyte a tile


def load(
    package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path
) -> TorchvisionDetector:
    """Load a torchvision package, see `load_detector`."""
    definition = package.definition
    architecture = str(definition.options.get("architecture", ""))
    label_offset = int(definition.options.get("label_offset", 1))
    if len(definition.input.bands) != _N_BANDS:
        raise ModelIncompatibleError(
            f"torchvision's detectors take {_N_BANDS} bands, and the definition names {len(definition.input.bands)}."
        )
    fixed = _FIXED_SIZE.get(architecture)
    network = _build(architecture, len(definition.classes) + label_offset, arguments, fixed)
    state = read_state(package.extract(package.weights_member(), folder / "weights"), package.weights_member())
    state = with_new_names(state, _old_names(architecture))
    fill(network, state, architecture, "Check the architecture, and that the classes are as many as in training.")
    is_outlined = architecture in _MASKED and not arguments.get("return_bboxes", False)
    if architecture in _MASKED:
        set_mask_branch(network.roi_heads, is_used=is_outlined)
    return (OutlineDetector if is_outlined else TorchvisionDetector)(
        make_ready(network, settings),
        Normaliser(definition.input, settings.device),
        label_offset,
        Traits(
            stride=definition.tile.stride or _STRIDE,
            receptive_field_radius=None,
            is_dense=False,
            network_size=fixed,
            max_detections=MAX_DETECTIONS,
            geometry="polygon" if is_outlined else "box",
        ),
    )


def _build(architecture: str, n_classes: int, arguments: Mapping[str, Any], fixed: int | None) -> torch.nn.Module:
    """Build the network with the user's limits, and without a resize of its own: a tile's pixels go in as they are."""
    if architecture not in _RCNN + _MASKED + _ONE_STAGE:
        raise ModelUnsupportedError(
            f"The architecture '{architecture}' is not one of torchvision's detectors that Kestrel builds.",
            hint=f"Architectures: {', '.join(_RCNN + _MASKED + _ONE_STAGE)}.",
        )
    prefix = "box_" if architecture in _RCNN + _MASKED else ""
    per_image = "box_detections_per_img" if architecture in _RCNN + _MASKED else "detections_per_img"
    limits = {
        f"{prefix}score_thresh": float(arguments["threshold"]),
        f"{prefix}nms_thresh": float(arguments["nms_overlap"]),
        per_image: MAX_DETECTIONS,
    }
    builder: Callable[..., torch.nn.Module] = getattr(detection, architecture)
    network = builder(
        weights=None, weights_backbone=None, num_classes=n_classes,
        image_mean=[0.0] * _N_BANDS, image_std=[1.0] * _N_BANDS, **limits,
    )  # fmt: skip
    if not fixed:
        network.transform = TileTransform()
    return network


def _old_names(architecture: str) -> Names:
    if architecture in _ONE_STAGE:
        families = {"retinanet_resnet50_fpn": RETINANET, "fcos_resnet50_fpn": FCOS}
        return families.get(architecture, ())
    return RCNN


class TorchvisionDetector:
    """A network that suppresses duplicates itself."""

    def __init__(self, network: torch.nn.Module, normalise: Normaliser, label_offset: int, traits: Traits) -> None:
        """Take the parts."""
        self._network, self._normalise = network, normalise
        self._label_offset = label_offset
        self._traits = traits

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return self._traits

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        with translated(len(batch)), torch.inference_mode():
            found = self._network(list(self._normalise(batch)))
            return [self._read(item) for item in found]

    def _read(self, found: dict[str, torch.Tensor]) -> Detections:
        labels = found["labels"].cpu().numpy() - self._label_offset
        keep = labels >= 0
        return make_detections(found["boxes"].cpu().numpy()[keep], found["scores"].cpu().numpy()[keep], labels[keep])


def set_mask_branch(heads: Any, *, is_used: bool) -> None:
    """Let masks go through their branch in parts, or take the branch off."""
    if is_used:
        heads.mask_head, heads.mask_predictor = nn.Identity(), _InParts(heads.mask_head, heads.mask_predictor)
    else:
        heads.mask_roi_pool = heads.mask_head = heads.mask_predictor = None


class _InParts(nn.Module):
    """Networks one after the other, through which a large batch goes in parts."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.Sequential(*stages)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.stages(part) for part in torch.split(batch, _PART)])


class OutlineDetector(TorchvisionDetector):
    """A network that gives masks, too."""

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects with outlines, see `Detector.predict`. What has a box but no pixel is no object."""
        with translated(len(batch)), torch.inference_mode():
            found = self._network(list(self._normalise(batch)))
            return [self._outlined(item, batch.shape[-1]) for item in found]

    def _outlined(self, found: dict[str, torch.Tensor], side: int) -> Detections:
        plain = self._read(found)
        shapes = outlines(found["masks"], found["boxes"], side)
        all_objects = make_detections(plain.boxes, plain.scores, plain.labels, shapes=shapes)
        return all_objects.take(np.array([shape is not None for shape in shapes], dtype=bool))
