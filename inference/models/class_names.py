"""Names of classes for models that bring none: from a list beside the weights, or by their usual number."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LISTS = ("{stem}.names", "{stem}.txt", "class_names.txt", "classes.txt", "labels.txt", "environment.json")
"""Files beside the weights that may list the classes, a name a line; Roboflow's environment.json has CLASS_LIST."""
_MAX_BYTES = 2**20
_MAX_CLASSES = 100_000
UNKNOWN = 100
"""Classes that a model gets which does not even tell how many it has."""

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes of COCO, in which most detectors that one can download were trained."""


def listed_names(weights: Path) -> tuple[list[str], str]:
    """Give the names in a list beside the weights, and that file's name; nothing where there is none."""
    for pattern in _LISTS:
        path = weights.parent / pattern.format(stem=weights.stem)
        is_own = path.is_file() and not path.is_symlink()  # a link may lead to a private text
        names = _read(path) if is_own and path.stat().st_size <= _MAX_BYTES else []
        if names:
            return names, path.name
    return [], ""


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    if path.suffix == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return []
        names = found.get("CLASS_LIST") if isinstance(found, dict) else None
        return names_of(names)
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line][:_MAX_CLASSES]


def names_of(value: Any) -> list[str]:
    """Give the names in a list, or in an object that has them under their numbers; nothing where it is neither.

    Numbers that are left out get a name of their own.
    """
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, Mapping):
        numbers = {int(key): str(name) for key, name in value.items() if str(key).strip().isdigit()}
        if not numbers or len(numbers) != len(value) or max(numbers) >= _MAX_CLASSES:
            return []
        return [numbers.get(number, f"Class {number}") for number in range(max(numbers) + 1)]
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and len(value) <= _MAX_CLASSES:
        return [str(name) for name in value]
    return []


def _literal(text: str) -> Any:
    """Read what programs write of a list or a dict: JSON, or Python's own way of writing it."""
    if len(text) > _MAX_BYTES:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def classes_json(names: Sequence[str], first: int = 0) -> list[dict[str, Any]]:
    """Give the member `classes` of a definition."""
    return [{"value": first + number, "name": name} for number, name in enumerate(names)]


def classes_for(weights: Path, n_classes: int | None, n_more: int = 0) -> tuple[list[dict[str, Any]], str, bool]:
    """Give classes for weights that name none.

    Args:
        weights: Their file: a list may lie beside it.
        n_classes: How many there are; None: unknown.
        n_more: How many of these may be none of a list's: a background.

    Returns:
        The member `classes` of a definition, a note on where they are from, and whether they are but numbers.
    """
    names, file = listed_names(weights)
    if names and (n_classes is None or n_classes - n_more <= len(names) <= n_classes):
        return (
            classes_json(names),
            f"The model does not name its classes; the names are those of {file} beside it.",
            False,
        )
    how = f"Name them in a file '{weights.stem}.txt' beside the model, one a line, or in a definition."
    if n_classes == len(COCO):
        return (
            classes_json(COCO),
            f"The model does not name its {len(COCO)} classes; COCO's names were assumed. {how}",
            False,
        )
    numbers = [f"Class {number}" for number in range(n_classes or UNKNOWN)]
    return classes_json(numbers), f"The model does not name its classes: they are numbers, from 0. {how}", True
