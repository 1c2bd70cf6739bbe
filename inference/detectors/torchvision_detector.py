"""torchvision's detection networks, built by torchvision and filled from a state dict: safetensors, or .pth as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torchvision.models import detection

from ..detections import Detections, make_detections
from ..errors import ModelIncompatibleError, ModelUnsupportedError
from ..models.package import ModelPackage
from .protocol import DetectorSettings, Traits
from .torch_common import Normaliser, TileTransform, fill, make_ready, translated
from .weights import read_state

MAX_DETECTIONS = 1000
"""Most objects of one tile; torchvision's 100 to 300 lose objects in dense scenes."""

_RCNN = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
         "fasterrcnn_mobilenet_v3_large_320_fpn")  # fmt: skip
_ONE_STAGE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
              "ssdlite320_mobilenet_v3_large")  # fmt: skip
_FIXED_SIZE = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
_N_BANDS = 3
_STRIDE = 128  # of the coarsest pyramid level that one of these networks uses


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
    fill(network, state, architecture, "Check the architecture, and that the classes are as many as in training.")
    return TorchvisionDetector(
        make_ready(network, settings),
        Normaliser(definition.input, settings.device),
        label_offset,
        Traits(
            stride=definition.tile.stride or _STRIDE,
            receptive_field_radius=None,
            is_dense=False,
            network_size=fixed,
            max_detections=MAX_DETECTIONS,
        ),
    )


def _build(architecture: str, n_classes: int, arguments: Mapping[str, Any], fixed: int | None) -> torch.nn.Module:
    """Build the network with the user's limits, and without a resize of its own: a tile's pixels go in as they are."""
    if architecture not in _RCNN + _ONE_STAGE:
        raise ModelUnsupportedError(
            f"The architecture '{architecture}' is not one of torchvision's detectors that Kestrel builds.",
            hint=f"Architectures: {', '.join(_RCNN + _ONE_STAGE)}.",
        )
    prefix = "box_" if architecture in _RCNN else ""
    per_image = "box_detections_per_img" if architecture in _RCNN else "detections_per_img"
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
