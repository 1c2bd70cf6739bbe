"""Bare weights: a state dict without a definition. torchvision's detectors are known by the names of their tensors.

Source: names and shapes of torchvision.models.detection, today's and those before 0.15.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ...errors import ModelPackageError, ModelUnsupportedError
from ..checkpoint import read_checkpoint
from ..definition import SCHEMA, SCHEMA_KEY
from ..emd_text import read_json
from .class_names import MAX_CLASSES, as_classes, names_beside

_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
_MAX_HEADER_BYTES, _MAX_TENSORS, _MOST_AXES = 2 * 2**20, 10_000, 8
_HALVES = 2
"""Numbers that a byte holds, in the smallest type of safetensors."""
_BOX, _MASK = "roi_heads.box_predictor.cls_score.weight", "roi_heads.mask_predictor.mask_fcn_logits.weight"
_DENSE, _CENTRE = "head.classification_head.cls_logits.weight", "head.regression_head.bbox_ctrness.weight"
_SSD, _SSD_LITE = (f"head.classification_head.module_list.0.{end}weight" for end in ("", "1."))
_ANCHORS = {"retinanet_resnet50_fpn": 9, "retinanet_resnet50_fpn_v2": 9, "ssd300_vgg16": 4,
            "ssdlite320_mobilenet_v3_large": 6}  # fmt: skip
_RESNET_BLOCKS = 6
"""Blocks of the third layer of resnet50; of deeper ones there are more."""

_BYTE = 1 / 255
_PICTURES = {"scale": _BYTE, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_INPUTS = {
    "ssd300_vgg16": {"scale": _BYTE, "mean": [0.48235, 0.45882, 0.40784], "std": [_BYTE] * 3},
    "ssdlite320_mobilenet_v3_large": {"scale": _BYTE, "mean": [0.5] * 3, "std": [0.5] * 3},
}
_SIZES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}

Shapes = Mapping[str, "tuple[int, ...]"]


def translate(path: Path) -> tuple[dict[str, Any], tuple[str, ...]] | None:
    """Give the definition of bare weights, see `carriers.translate`.

    Raises:
        ModelError: not the weights of a network that is known by its tensors; it gives a definition to be filled in.
    """
    if path.suffix.lower() not in _SUFFIXES or not path.is_file() or path.stat().st_size == 0:
        return None
    shapes = tensor_shapes(path)
    architecture = _architecture(shapes)
    if not architecture:
        raise _unknown(path, shapes)
    return _definition(path, architecture, _n_labels(path, shapes, architecture))


def tensor_shapes(path: Path) -> Shapes:
    """Give the names and shapes of a file's tensors; nothing in it is run.

    Raises:
        ModelError: no weights, or a program.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    if path.suffix.lower() != ".safetensors" and start[8:] != b"{":
        return {name: tensor.shape for name, tensor in read_checkpoint(path, path.name).items()}
    length, size = int.from_bytes(start[:8], "little"), path.stat().st_size
    if length + 8 > size:
        raise _damaged(path)
    if length > _MAX_HEADER_BYTES:
        raise _too_many_tensors(path)
    with path.open("rb") as stream:
        stream.seek(8)
        text = stream.read(length)
    try:
        header = read_json(text, f"in '{path.name}'")
    except ModelPackageError as error:
        raise _damaged(path) from error
    header.pop("__metadata__", None)
    if len(header) > _MAX_TENSORS:
        raise _too_many_tensors(path)
    if not all(_is_sound(tensor, size - 8 - length) for tensor in header.values()):
        raise _damaged(path)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def _is_sound(tensor: Any, n_bytes: int) -> bool:
    """Tell whether a header's entry is a shape whose numbers the file has room for."""
    shape = tensor.get("shape") if isinstance(tensor, Mapping) else None
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        return False
    return prod(shape) <= _HALVES * n_bytes


def _too_many_tensors(path: Path) -> ModelUnsupportedError:
    return ModelUnsupportedError(
        f"The weights '{path.name}' list more than {_MAX_TENSORS} tensors; no detector that Kestrel knows has as many.",
        hint="Export the model to ONNX where it was trained.",
    )


def _damaged(path: Path) -> ModelPackageError:
    return ModelPackageError(
        f"The weights '{path.name}' are damaged: their list of tensors cannot be read.",
        hint="Copy or download the file again.",
    )


def _architecture(shapes: Shapes) -> str:
    """Give the builder of torchvision's network that has these tensors; empty where there is none."""
    if "backbone.body.conv1.weight" in shapes:
        blocks = {name.split(".")[3] for name in shapes if name.startswith("backbone.body.layer3.")}
        is_resnet50 = len(blocks) == _RESNET_BLOCKS and "backbone.body.layer1.0.conv3.weight" in shapes
        return _on_resnet(shapes) if is_resnet50 and "backbone.fpn.layer_blocks.0" in _without_ends(shapes) else ""
    if _BOX in shapes and "backbone.body.0.0.weight" in shapes:
        return "fasterrcnn_mobilenet_v3_large_fpn"
    if _SSD in shapes and "backbone.scale_weight" in shapes:
        return "ssd300_vgg16"
    if _SSD_LITE in shapes and "backbone.features.0.0.0.weight" in shapes:
        return "ssdlite320_mobilenet_v3_large"
    return ""


def _without_ends(shapes: Shapes) -> set[str]:
    return {".".join(name.split(".")[:4]) for name in shapes}


def _on_resnet(shapes: Shapes) -> str:
    if _BOX in shapes:
        family = "maskrcnn" if _MASK in shapes else "fasterrcnn"
        return f"{family}_resnet50_fpn" + ("_v2" if "roi_heads.box_head.0.0.weight" in shapes else "")
    if _DENSE in shapes and _CENTRE in shapes:
        return "fcos_resnet50_fpn"
    if _DENSE in shapes:
        # The second version has group norms, which have one number a channel where the first has a convolution's.
        is_second = len(shapes.get("head.classification_head.conv.0.1.weight", (0, 0))) == 1
        return "retinanet_resnet50_fpn" + ("_v2" if is_second else "")
    return ""


def _n_labels(path: Path, shapes: Shapes, architecture: str) -> int:
    last = next(name for name in (_BOX, _DENSE, _SSD, _SSD_LITE) if name in shapes)
    n = max(shapes[last][0] if shapes[last] else 0, 0) // _ANCHORS.get(architecture, 1)
    if n > MAX_CLASSES:
        raise ModelUnsupportedError(
            f"The weights '{path.name}' are for {n} classes; more than {MAX_CLASSES} are not taken.",
            hint="Copy or download the file again, in case that it is damaged.",
        )
    return n


def _definition(path: Path, architecture: str, n_labels: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    has_background = not architecture.startswith(("retinanet", "fcos"))
    names, told = _names(path, n_labels, has_background=has_background)
    offset = n_labels - len(names)
    note = (
        f"'{path.name}' holds weights alone. Their names are those of torchvision's {architecture}; pixels were taken "
        "to be red, green and blue, normalised as torchvision's own training does."
    )
    size = _SIZES.get(architecture)
    content = {
        SCHEMA_KEY: SCHEMA,
        "name": path.stem,
        "detector": {
            "kind": "torchvision", "architecture": architecture, "weights": path.name, "label_offset": offset,
        },
        "input": _INPUTS.get(architecture, _PICTURES),
        "classes": as_classes(names, offset),
        **({"tile": {"size": size}} if size else {}),
    }  # fmt: skip
    return content, (note, told)


def _names(path: Path, n_labels: int, *, has_background: bool) -> tuple[Sequence[str], str]:
    """Give the names of the classes: from a list of all labels, or of those without the background."""
    found, where = names_beside(path)
    if found and found[0].strip("_").lower() == "background":
        found = found[1:]
    if found and n_labels - len(found) in (0, 1) and (not has_background or len(found) == n_labels - 1):
        return found, f"The names of the classes are those in '{where}'."
    n = n_labels - has_background
    if n < 1:
        raise _damaged(path)
    told = (
        f"The file does not name its {n} classes: they are numbered. Name them in a file '{path.stem}.txt' beside it."
    )
    if found:
        told = f"'{where}' names {len(found)} classes, and '{path.name}' knows {n}: it was not used. {told}"
    return [f"Class {number}" for number in range(int(has_background), n + has_background)], told


def _unknown(path: Path, shapes: Shapes) -> ModelPackageError:
    """Give the error for weights of an unknown network, with a definition that can be copied."""
    example = {
        SCHEMA_KEY: SCHEMA, "name": path.stem,
        "detector": {"kind": "torchvision", "architecture": "fasterrcnn_resnet50_fpn", "weights": path.name},
        "input": _PICTURES, "classes": [{"value": 1, "name": "Tree"}],
    }  # fmt: skip
    first = ", ".join(sorted(shapes)[:3])
    return ModelPackageError(
        f"The file '{path.name}' holds weights alone ({len(shapes)} tensors: {first}, ...), and their names do not "
        "tell which network they belong to.",
        hint="Export the model to ONNX where it was trained. Or, where it is one of torchvision's detectors, write "
        f"this into a file '{path.stem}.json' beside it, with its own architecture and classes: {json.dumps(example)}",
    )
