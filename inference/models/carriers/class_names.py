"""Names of classes for a model that says them in no definition: in a list beside it, else numbers."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MAX_CLASSES = 10_000
_MAX_NAME = 200
_MAX_LIST_BYTES = 2**20
_MAX_LITERAL = 128 * 2**10  # characters; what reads them takes some hundred times as many bytes
_LISTS = ("classes.txt", "labels.txt", "class_names.txt", "names.txt", "classes.names", "obj.names", "coco.names")
_ROBOFLOW, _ROBOFLOW_KEY = "environment.json", "CLASS_LIST"
"""File that Roboflow's exports have beside them, and its member with the classes."""
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


def as_names(value: Any) -> tuple[str, ...]:
    """Read names that stand as a list, or as a mapping from number to name; empty where they are neither.

    A text may be either of them as JSON or Python writes it.

    Numbers that a mapping leaves out are named by themselves, so that the others keep their places.
    """
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(value, Mapping):
        numbered = {int(key): item for key, item in value.items() if str(key).isdecimal() and len(str(key)) < 6}
        if not numbered or len(numbered) != len(value) or max(numbered) >= MAX_CLASSES:
            return ()
        value = [numbered.get(number, f"class {number}") for number in range(max(numbered) + 1)]
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= MAX_CLASSES:
        return ()
    try:
        return tuple(_plain(str(item)) or f"class {number}" for number, item in enumerate(value))
    except ValueError:  # a number of more digits than Python writes
        return ()


def names_beside(path: Path) -> tuple[tuple[str, ...], str]:
    """Give the names in the list beside a model, one a line, and the list's own name; nothing where there is none."""
    for name in (f"{path.stem}.names", f"{path.stem}.txt", *_LISTS):
        place = path.with_name(name)
        if place.is_symlink() or not place.is_file():
            continue
        with place.open("rb") as stream:
            data = stream.read(_MAX_LIST_BYTES + 1)
        lines = data.decode("utf-8-sig", "replace").splitlines() if len(data) <= _MAX_LIST_BYTES else []
        names = [_plain(line) for line in lines if _plain(line)]
        if 0 < len(names) <= MAX_CLASSES:
            return tuple(names), name
    listed = _of_roboflow(path.with_name(_ROBOFLOW))
    return (listed, _ROBOFLOW) if listed else ((), "")


def _of_roboflow(place: Path) -> tuple[str, ...]:
    if place.is_symlink() or not place.is_file() or place.stat().st_size > _MAX_LIST_BYTES:
        return ()
    try:
        content = json.loads(place.read_bytes())
    except (ValueError, RecursionError):
        return ()
    return as_names(content.get(_ROBOFLOW_KEY)) if isinstance(content, dict) else ()


def _literal(text: str) -> Any:
    """Read what programs write of a list or a mapping: JSON, or Python's own way of writing it."""
    if len(text) > _MAX_LITERAL:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def classes_for(path: Path, n_classes: int | None, n_more: int = 0) -> tuple[list[dict[str, Any]], str, bool]:
    """Give classes for weights that name none.

    Args:
        path: Their file: a list may lie beside it.
        n_classes: How many there are; None: unknown.
        n_more: How many of these may be none of a list's: a background.

    Returns:
        The member `classes` of a definition, a note on where they are from, and whether they are but numbers.
    """
    names, place = names_beside(path)
    if names and (n_classes is None or n_classes - n_more <= len(names) <= n_classes):
        return (
            as_classes(names),
            f"The model does not name its classes; the names are those of {place} beside it.",
            False,
        )
    if n_classes == len(COCO):
        note = f"The model does not name its {len(COCO)} classes; COCO's names were assumed."
        return as_classes(COCO), f"{note} {how_to_name(path, str(len(COCO)))}", False
    return as_classes(numbered(n_classes or UNKNOWN)), how_to_name(path, str(n_classes or "as many")), True


def numbered(n: int, first: int = 0) -> tuple[str, ...]:
    """Give names for classes that nobody named: the network's labels."""
    return tuple(f"class {number}" for number in range(first, first + n))


def as_classes(names: Iterable[str], first: int = 1) -> list[dict[str, Any]]:
    """Give the classes of a definition, with values from `first` on."""
    return [{"value": number, "name": name} for number, name in enumerate(names, first)]


def how_to_name(path: Path, n: str) -> str:
    """Say how a model's classes get their names."""
    return (
        f"'{path.name}' does not name its classes: they are numbered. For names, write {n} lines, one name each, into "
        f"a file 'classes.txt' beside it, in the order of the training."
    )


def _plain(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MAX_NAME]
