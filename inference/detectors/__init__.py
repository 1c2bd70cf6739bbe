"""Detectors: loaded networks. `load_detector` finds the module for a definition's kind and imports it on use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import BackendMissingError
from ..models.esri_input import without_radiometric_offset
from ..models.package import ModelPackage
from ..versions import SETUP_HINT, TORCH_PAIR, check_floors, installed_versions
from .protocol import Detector, DetectorSettings

_MODULES = {
    "onnx": ".onnx_detector",
    "torchvision": ".torchvision_detector",
    "arcgis": ".arcgis",
    "tensorflow": ".tensorflow_detector",
    "python": ".hosted_detector",
    "torchscript": ".hosted_detector",
    "torch_export": ".hosted_detector",
    "transformers": ".transformers_detector",
}
_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "torchvision": TORCH_PAIR,
    "arcgis": TORCH_PAIR,
    "torchscript": ("torch",),
    "torch_export": ("torch",),
    "transformers": TORCH_PAIR,
}
"""What a kind of model cannot do without; what a package's own program needs, only it knows."""


def load_detector(
    package: ModelPackage, arguments: Mapping[str, Any], settings: DetectorSettings, folder: Path
) -> Detector:
    """Load a package's network.

    Args:
        package: The opened package.
        arguments: Resolved model arguments.
        settings: Device and threads.
        folder: A private folder for files that must be unpacked.

    Raises:
        BackendMissingError: a library that this kind of model needs is missing or too old.
        ModelError: the weights cannot be loaded, or do not fit the definition.
        DeviceError: the device cannot be used.
    """
    kind = package.definition.kind
    if arguments.get("radiometric_offset_correction"):
        definition = package.definition
        shifted = without_radiometric_offset(definition.input)
        package = replace(package, definition=replace(definition, input=shifted))
    check_floors(_LIBRARIES.get(kind, ()), installed_versions())
    try:
        module = import_module(_MODULES[kind], __package__)
    except (ImportError, RuntimeError) as error:
        # RuntimeError: torchvision was built for another torch, and its operators do not register.
        raise BackendMissingError(
            f"The inference environment cannot run {kind} models: {error}.", hint=SETUP_HINT
        ) from error
    detector: Detector = module.load(package, arguments, settings, folder)
    return detector
