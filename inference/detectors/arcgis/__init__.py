"""Models that arcgis.learn trained, run without arcgis: one module a family of networks, filled from the weights."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ...errors import ModelUnsupportedError
from ...models.package import ModelPackage
from ..protocol import Detector, DetectorSettings
from ..weights import read_state

FAMILIES: Mapping[str, str] = {
    "FasterRCNN": ".rcnn",
    "MaskRCNN": ".rcnn",
    "SingleShotDetector": ".ssd",
    "RetinaNet": ".retinanet",
    "YOLOv3": ".yolov3",
    "RTDetrV2": ".rtdetr",
    "DeepForest": ".deepforest",
}
"""Module of each family, imported on use."""


def load(package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path) -> Detector:
    """Load an arcgis.learn package, see `load_detector`."""
    family = str(package.definition.options.get("family", ""))
    if family not in FAMILIES:
        raise ModelUnsupportedError(
            f"The model's family '{family}' is not one that Kestrel builds.", hint=f"Families: {', '.join(FAMILIES)}."
        )
    member = package.weights_member()
    state: Mapping[str, torch.Tensor] = read_state(package.extract(member, folder / "weights"), member)
    detector: Detector = import_module(FAMILIES[family], __package__).build(
        package.definition, state, arguments, settings
    )
    return detector
