"""torchvision's detection networks, built by torchvision and filled from a state dict: safetensors, or .pth as data."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # nosec B403  # the exception's name only; nothing is unpickled here
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torchvision.models import detection

from ..detections import Detections, make_detections
from ..errors import ModelIncompatibleError, ModelPackageError, ModelUnsupportedError, UntrustedCodeError
from ..models.package import ModelPackage
from .protocol import DetectorSettings, Traits
from .torch_common import Normaliser, TileTransform, fill, make_ready, translated

MAX_DETECTIONS = 1000
"""Most objects of one tile; torchvision's 100 to 300 lose objects in dense scenes."""

_RCNN = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
         "fasterrcnn_mobilenet_v3_large_320_fpn")  # fmt: skip
_ONE_STAGE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16",
              "ssdlite320_mobilenet_v3_large")  # fmt: skip
_LOADING_ERRORS = (
    UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, AttributeError, IndexError, TypeError,
)  # fmt: skip
"""What torch.load was seen to raise on damaged and on foreign files."""
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
    state = _read_state(package.extract(package.weights_member(), folder / "weights"), package.weights_member())
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


def _read_state(path: Path, name: str) -> dict[str, torch.Tensor]:
    if name.lower().endswith(".safetensors"):
        try:
            return load_file(str(path))
        except SafetensorError as error:
            raise ModelPackageError(f"The weights '{name}' are damaged: {error}.") from error
    if _is_torchscript(path):
        raise UntrustedCodeError(
            f"The file '{name}' is TorchScript, which is a program, and Kestrel does not run programs from packages.",
            hint="Save the network's state dict (safetensors, or torch.save(model.state_dict())), or export to ONNX.",
        )
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True)
    except _LOADING_ERRORS as error:
        raise ModelPackageError(
            f"The weights '{name}' cannot be read as plain tensors.",
            hint="The file holds more than weights, or is damaged. Save the state dict alone, best as safetensors.",
        ) from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelPackageError(f"The weights '{name}' are no state dict: names with tensors were expected.")
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("constants.pkl") for name in archive.namelist())


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
