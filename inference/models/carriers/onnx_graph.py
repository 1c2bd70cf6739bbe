"""Bare .onnx files: what their metadata and their graph say, as a definition.

Read are the metadata of Ultralytics (names, stride, task, imgsz), of Deepness for QGIS (class_names, det_type,
resolution, ...), of Kestrel (a whole definition), and lists of classes beside the file.

Source:
    Ultralytics' exporter; the metadata keys in Deepness' documentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..onnx_file import OnnxFacts, TensorInfo, read_onnx
from ..onnx_heads import Question, readings
from .class_names import COCO, MAX_CLASSES, as_classes, as_names, classes_for, names_beside

KESTREL_KEY = "kestrel_definition"
"""Key of the metadata under which a whole definition may stand, as JSON."""
_PIXELS = ("uint8", "uint16", "float16", "float32", "float64")
_ULTRALYTICS = {"names", "stride"}
_TASKS = ("detect", "segment", "obb", "pose")
_N_ROW = 6
_DEEPNESS_HEADS = {
    "yolo_v5_or_v7_default": "yolov5", "yolo_v6": "yolov5", "yolo_v9": "yolov8", "yolo_ultralytics": "yolov8",
    "yolo_ultralytics_segmentation": "yolov8-seg", "yolo_ultralytics_obb": "yolov8-obb",
}  # fmt: skip
_DEFAULT_SIDE = 640
_MAX_SIDE = 8192
_MOST_NUMBER = 1e9
MOST_BANDS = 1000


def translate(path: Path) -> tuple[Mapping[str, Any], tuple[str, ...]] | None:
    """Give the definition of a bare .onnx file, see `carriers.translate`.

    Raises:
        ModelPackageError: it is no ONNX model.
        ModelUnsupportedError: it takes something other than images, or is for another task.
    """
    if path.suffix.lower() != ".onnx" or not path.is_file():
        return None
    with path.open("rb") as stream:
        facts = read_onnx(stream, path.name)
    own = facts.metadata.get(KESTREL_KEY, "")
    if own:
        return _own(own, path)
    image = _image(facts, path.name)
    described = _described(path, facts, image)
    definition = {"kestrel_definition": 1, "name": path.stem, **described.members}
    definition["detector"] = {"kind": "onnx", "weights": path.name, **described.detector}
    return definition, tuple(described.notes)


def _own(text: str, path: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    try:
        definition = json.loads(text)
    except (ValueError, RecursionError):
        definition = None
    if not isinstance(definition, dict) or not isinstance(definition.get("detector"), dict):
        raise ModelPackageError(f"The definition in the metadata of '{path.name}' is not valid JSON.")
    return {**definition, "detector": {**definition["detector"], "weights": path.name}}, ()


@dataclass
class _Described:
    """What was found out of a graph, as members of a definition."""

    members: dict[str, Any]
    detector: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _image(facts: OnnxFacts, name: str) -> TensorInfo:
    images = [item for item in facts.inputs if item.dtype in _PIXELS and len(item.shape or ()) == 4]
    if len(images) != 1:
        found = ", ".join(map(str, facts.inputs)) or "nothing"
        raise ModelUnsupportedError(
            f"The model '{name}' takes {found}; Kestrel feeds one batch of images (N, C, H, W) or (N, H, W, C).",
            hint="Export the network alone, without further inputs.",
        )
    return images[0]


def _described(path: Path, facts: OnnxFacts, image: TensorInfo) -> _Described:
    n_bands, size = _form(image)
    side = max(size or (_DEFAULT_SIDE, 0))
    described = _Described({"tile": {"size": min(side, _MAX_SIDE)}, "input": {"bands": list(range(n_bands))}})
    metadata = facts.metadata
    if set(metadata) >= _ULTRALYTICS:
        _ultralytics(described, metadata, facts, size)
    elif "class_names" in metadata and "model_type" in metadata:
        _deepness(described, metadata, n_bands)
    else:
        _unnamed(described, path, facts, size)
    if image.dtype.startswith("uint"):
        described.members["input"] = {"bands": list(range(n_bands))}  # whole numbers go in as they are
    return described


def _form(image: TensorInfo) -> tuple[int, tuple[int, int] | None]:
    """Give the number of bands, and height and width where both are fixed."""
    _, a, b, c = image.shape or (None,) * 4
    is_last = c in (1, 3, 4) and a not in (1, 3, 4)
    bands, height, width = (c, a, b) if is_last else (a, b, c)
    if (bands or 0) > MOST_BANDS:
        raise ModelUnsupportedError(f"The model takes images of {bands} bands; Kestrel feeds at most {MOST_BANDS}.")
    return bands or 3, None if height is None or width is None else (height, width)


# -- Ultralytics -------------------------------------------------------------------------------------------------------


def _ultralytics(
    described: _Described, metadata: Mapping[str, str], facts: OnnxFacts, size: tuple[int, int] | None
) -> None:
    """Read the metadata of Ultralytics' exports; those of the YOLOv5 repository name no task."""
    names, task = as_names(metadata["names"]), metadata.get("task", "detect")
    if task not in _TASKS or not names:
        raise ModelUnsupportedError(
            f"The model is for the task '{task}', not for detecting objects.",
            hint=f"Kestrel runs Ultralytics' models for the tasks {', '.join(_TASKS)}.",
        )
    described.detector.update(_ultralytics_head(metadata, facts, len(names), size))
    described.members["classes"] = as_classes(names)
    described.members["input"].update({"scale": 1 / 255, "pad_value": 114})
    if _is_decoder(metadata):
        described.members["input"]["resize"] = "stretch"
    for member in ("version", "description", "license"):
        described.members[member] = metadata.get(member, "")
    sides = as_names(metadata.get("imgsz", ""))
    if size is None and sides and all(side.isdecimal() for side in sides):
        described.members["tile"]["size"] = max(32, min(max(int(side) for side in sides), _MAX_SIDE))
    if task == "pose":
        described.notes.append("The model's key points are left out: Kestrel gives the boxes around them.")


def _is_decoder(metadata: Mapping[str, str]) -> bool:
    """Tell RT-DETR from the YOLOs: its boxes are fractions of the image."""
    return metadata.get("head") == "RTDETRDecoder" or "rtdetr" in metadata.get("description", "").lower()


def _ultralytics_head(
    metadata: Mapping[str, str], facts: OnnxFacts, n_classes: int, size: tuple[int, int] | None
) -> dict[str, Any]:
    """Give the head and its options; no head where only the run can tell."""
    task = metadata.get("task", "")
    shape = next((item.shape for item in facts.outputs if len(item.shape or ()) == 3), None) or (None,) * 3
    if _is_decoder(metadata):
        options = {"box_format": "cxcywh", "box_units": "fractions"}
        if shape[2] == _N_ROW and (n_classes != _N_ROW - 4 or "head" in metadata):
            return {"head": "rows", **options}
        return {"head": "detr", "scores": "probabilities", "background": "none", **options}
    # The exporter notes its own arguments in Python's way of writing them.
    is_end_to_end = metadata.get("end2end", "").lower() == "true" or "'nms': True" in metadata.get("args", "")
    suffix = {"segment": "-seg", "obb": "-obb"}.get(task, "")
    if is_end_to_end:
        return {"head": "rows" + suffix}
    if None in shape and task:
        return {"head": f"yolov8{'-pose' if task == 'pose' else suffix}"}
    found = readings(Question(facts.outputs, n_classes, size, task))
    # A YOLO whose boxes are decoded: YOLOX has no such metadata.
    heads = [reading.head for reading in found if reading.head != "yolox"]
    return {"head": heads[0]} if heads and size is not None else {}


# -- Deepness ----------------------------------------------------------------------------------------------------------


def _deepness(described: _Described, metadata: Mapping[str, str], n_bands: int) -> None:
    kind = str(_value(metadata, "model_type"))
    if kind.lower() != "detector":
        raise ModelUnsupportedError(
            f"The model is a '{kind}' for Deepness, not a detector of objects.", hint="Kestrel runs its detectors."
        )
    names = as_names(_value(metadata, "class_names"))
    if not names:
        raise ModelPackageError("The model's metadata have no list of classes under 'class_names'.")
    det_type = str(_value(metadata, "det_type") or "YOLO_v5_or_v7_default")
    head = _DEEPNESS_HEADS.get(det_type.lower())
    if head is None:
        raise ModelUnsupportedError(
            f"The model's det_type '{det_type}' is not known.",
            hint="Name the head in a definition beside it, see docs/model_formats.md.",
        )
    described.detector["head"] = head
    described.members["classes"] = as_classes(names)
    spec: dict[str, Any] = {"scale": 1 / 255}
    for member, key in (("mean", "standardization_mean"), ("std", "standardization_std")):
        numbers = _value(metadata, key)
        if isinstance(numbers, list) and len(numbers) in (1, n_bands):
            spec[member] = numbers
    described.members["input"].update(spec)
    resolution, overlap = _number(metadata, "resolution"), _number(metadata, "tiles_overlap")
    if resolution and resolution > 0:
        described.members["cell_size"] = {"read_at": resolution / 100}  # centimetres a pixel
    size = _number(metadata, "tiles_size")
    if size and 32 <= size <= _MAX_SIDE:
        described.members["tile"]["size"] = int(size)
        if overlap and 0 < overlap < 50:
            described.members["tile"]["padding"] = int(size * overlap / 100 / 2)
    limits = {"threshold": _number(metadata, "det_conf"), "nms_overlap": _number(metadata, "det_iou_thresh")}
    described.members["arguments"] = {name: value for name, value in limits.items() if value and 0 <= value <= 1}


def _value(metadata: Mapping[str, str], key: str) -> Any:
    text = metadata.get(key, "")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _number(metadata: Mapping[str, str], key: str) -> float | None:
    value = _value(metadata, key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MOST_NUMBER
    return float(value) if is_number else None


# -- Graphs that say nothing -------------------------------------------------------------------------------------------


def _unnamed(described: _Described, path: Path, facts: OnnxFacts, size: tuple[int, int] | None) -> None:
    n_listed = len(names_beside(path)[0]) or None
    found = readings(Question(facts.outputs, n_listed, size)) or readings(Question(facts.outputs, None, size))
    counts = {reading.n_classes for reading in found}
    is_sure = len(counts) == 1 or (found and found[0].n_classes == len(COCO))
    n_classes = found[0].n_classes if is_sure else None
    if n_classes is not None and n_classes > MAX_CLASSES:
        raise ModelUnsupportedError(f"The model tells {n_classes} classes apart; Kestrel knows at most {MAX_CLASSES}.")
    has_background = bool(found) and found[0].head in ("detr", "ssd")
    classes, note, is_numbered = classes_for(path, n_classes, n_more=int(has_background))
    if not found and all(item.shape is not None and None not in item.shape for item in facts.outputs):
        listed = ", ".join(map(str, facts.outputs))
        raise ModelUnsupportedError(
            f"The outputs of '{path.name}' ({listed}) are none that Kestrel knows.",
            hint="Describe the model with a definition beside it that names its head, see docs/model_formats.md.",
        )
    described.members["classes"] = classes
    described.members["input"]["assumed"] = True
    heads = {reading.head for reading in found}
    if len(found) == 1:
        described.detector["head"] = found[0].head
        described.detector.update(found[0].options)
    if heads == {"ssd"}:
        described.members["input"]["resize"] = "stretch"
    if "yolox" in heads:
        described.members["input"]["pad_value"] = 114
    described.notes.append(note)
    if is_numbered:
        described.detector["numbered_classes"] = True
        described.detector.pop("label_offset", None)  # the numbers are the network's own
