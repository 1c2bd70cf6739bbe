"""Esri model definitions (.emd): translate what Kestrel runs, refuse the rest by name.

Run here: Framework "ONNX" with a .onnx file, and Framework "torchvision" with weights for one of torchvision's
detection builders. The member "Kestrel" holds what an .emd has no word for (docs/definition.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError, ModelPackageError, ModelUnsupportedError, UntrustedCodeError
from .definition import (
    MAX_STRIDE,
    CellSizeRange,
    InputSpec,
    ModelDefinition,
    Reader,
    TileSpec,
    check_schema,
    classes_from_json,
    default_arguments,
    detector_options,
)

_KIND_OF_FRAMEWORK = {"onnx": "onnx", "torchvision": "torchvision"}
_HEAD_OF_CONFIGURATION = {"yolov8": "yolov8", "yolov5": "yolov5", "boxes": "boxes"}


def definition_from_emd(data: Mapping[str, Any], members: Sequence[str]) -> ModelDefinition:
    """Translate an .emd.

    Args:
        data: The JSON object.
        members: Names of the package's files.

    Raises:
        ModelPackageError: it is no model definition, or a member is not what it should be.
        ModelUnsupportedError: a model of a kind that Kestrel does not run.
        UntrustedCodeError: the model is a Python program in the package.
    """
    reader = Reader(data)
    kind = _detector_kind(reader, members)
    extra = reader.child("Kestrel")
    check_schema(extra, "schema", 1)
    extra.only(
        "schema", "head", "architecture", "label_offset", "input", "stride", "receptive_field_radius", "arguments"
    )
    return ModelDefinition(
        name=str(data.get("ModelName") or data.get("Name") or "Model"),
        version=str(data.get("ModelVersion") or data.get("Version") or ""),
        description=str(data.get("Description") or ""),
        license=str(data.get("License") or ""),
        kind=kind,
        weights=reader.text("ModelFile"),
        options=_options(reader, extra),
        input=_input(reader, extra.child("input")),
        tile=_tile(reader, extra),
        cell_size=_cell_size(reader),
        classes=classes_from_json(data.get("Classes")),
        arguments=default_arguments(extra),
        is_map_space=str(data.get("ImageSpaceUsed", "MAP_SPACE")).upper() == "MAP_SPACE",
    )


def _detector_kind(reader: Reader, members: Sequence[str]) -> str:
    framework = str(reader.data.get("Framework", "")).strip()
    if framework.startswith("e.g. "):
        raise ModelPackageError(
            "This .emd is the template that an export of training data writes; it describes no trained model.",
            hint="Train a model first, and choose the definition that the training wrote.",
        )
    kind = _KIND_OF_FRAMEWORK.get(framework.lower())
    if kind is None:
        raise _unsupported(reader, framework)
    model_type = str(reader.data.get("ModelType", "ObjectDetection"))
    if model_type not in ("ObjectDetection", "ObjectionDetection"):
        raise ModelUnsupportedError(f"This is a model of type '{model_type}'; Kestrel runs object detection models.")
    return kind


def _unsupported(reader: Reader, framework: str) -> ModelError:
    function = str(reader.data.get("InferenceFunction", ""))
    family = str(reader.data.get("ModelName") or reader.data.get("ModelConfiguration") or "")
    if framework.startswith("arcgis.learn"):
        return ModelUnsupportedError(
            f"This is an arcgis.learn model of the family '{family}', which this version of Kestrel does not run.",
            hint="Export it to ONNX, or describe its weights with a definition, see docs/definition.md.",
        )
    if function.lower().endswith(".py"):
        return UntrustedCodeError(
            f"This model is a Python program ('{function}'), and Kestrel does not run programs from packages.",
            hint="Use a version of the model in ONNX form.",
        )
    if not framework and "ModelFile" not in reader.data:
        return ModelPackageError(
            "This JSON is no model definition: it has neither 'Framework' nor 'kestrel_definition'.",
            hint="See docs/definition.md for the form of a definition.",
        )
    return ModelUnsupportedError(
        f"The framework '{framework}' is not one that Kestrel runs.",
        hint=f"Kestrel runs: {', '.join(sorted(_KIND_OF_FRAMEWORK))}.",
    )


def _options(reader: Reader, extra: Reader) -> dict[str, Any]:
    configuration = str(reader.data.get("ModelConfiguration", ""))
    options = detector_options(extra)
    if configuration.lower() in _HEAD_OF_CONFIGURATION:
        options.setdefault("head", _HEAD_OF_CONFIGURATION[configuration.lower()])
    elif configuration:
        options.setdefault("architecture", configuration)
    return options


def _input(reader: Reader, extra: Reader) -> InputSpec:
    extra.only("scale", "mean", "std", "order")
    bands = reader.bands("ExtractBands")
    order = extra.text("order", "RGB").upper()
    if order not in ("RGB", "BGR"):
        raise extra.refuse("order", "RGB or BGR")
    if order == "BGR":
        bands = bands[::-1]
    return InputSpec(
        bands=bands,
        scale=extra.factors("scale", 1.0, len(bands)),
        mean=extra.factors("mean", 0.0, len(bands)),
        std=extra.factors("std", 1.0, len(bands)),
        data_range=reader.data_range("DataRange") if reader.data.get("DataRange") else None,
    )


def _tile(reader: Reader, extra: Reader) -> TileSpec:
    height, width = reader.integer("ImageHeight", 512, minimum=8), reader.integer("ImageWidth", 512, minimum=8)
    if height != width:
        raise ModelUnsupportedError(f"The model wants tiles of {width} x {height} pixels; Kestrel cuts square tiles.")
    return TileSpec(
        size=height or 512,
        is_variable=bool(reader.data.get("SupportsVariableTileSize", False)),
        padding=None,
        stride=extra.integer("stride", None, minimum=1, maximum=MAX_STRIDE),
        receptive_field_radius=extra.integer("receptive_field_radius", None),
    )


def _cell_size(reader: Reader) -> CellSizeRange | None:
    low, high = reader.data.get("MinCellSize"), reader.data.get("MaxCellSize")
    if not isinstance(low, Mapping) or not isinstance(high, Mapping):
        return None
    values: list[Any] = [low.get("x"), high.get("x")]
    if not all(isinstance(v, (int, float)) and v > 0 for v in values):
        return None
    reference = low.get("spatialReference")
    wkid = reference.get("latestWkid", reference.get("wkid")) if isinstance(reference, Mapping) else None
    return CellSizeRange(min(values), max(values), wkid if isinstance(wkid, int) else None)
