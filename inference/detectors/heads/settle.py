"""What names and shapes leave open, the values of one tile tell: which reading, units, and what scores are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...models.onnx_heads import Reading
from . import Outputs, Size
from .dense import find_grid

_FRACTION = 2.0
"""Coordinates that are fractions of the image's sides stay below this; boxes may lean out of the image."""
_SMALLEST = 16
_ALIKE = 0.9
"""Correlation of decoded positions with their cells."""
_SUM = 1e-3
_LOGITS = ("logits", "pred_logits")
"""Names of outputs that are no probabilities, whatever their values."""
_SHARE = 0.95
_NO_OBJECT = 0.0
"""Median of the last column's logits above which most queries say "no object"; sigmoids of most queries are small."""


def by_role(outputs: Outputs, reading: Reading, ranks: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Give a graph's outputs by their roles, each with the batch's axis: added to all where the boxes lack it."""
    found = {role: outputs[name] for role, name in reading.roles.items() if role in ranks}
    main = "table" if "table" in found else "boxes"
    lacks_axis = main in found and found[main].ndim == ranks[main] - 1
    return {role: array[None] for role, array in found.items()} if lacks_axis else found


def choose(found: Sequence[Reading], outputs: Outputs, size: Size) -> Reading:
    """Give the first reading that the values bear out; the first of all where none is."""
    plausible = (reading for reading in found if _is_plausible(reading, outputs, size))
    return next(plausible, found[0])


def _is_plausible(reading: Reading, outputs: Outputs, size: Size) -> bool:
    if reading.head in ("rows", "rows-seg"):
        table = outputs[reading.roles["table"]]
        return bool(_are_probabilities(table[..., 4]) and np.all(table[..., 5] == np.rint(table[..., 5])))
    if "logits" in reading.roles or "scores" in reading.roles:
        return not _is_swapped(reading, outputs)
    if reading.head in ("yolov5", "yolox"):
        return _is_decoded(outputs[reading.roles["table"]], reading, size) == (reading.head == "yolov5")
    return True


def _is_swapped(reading: Reading, outputs: Outputs) -> bool:
    """Tell whether what should be boxes are probabilities, and what should be scores are not."""
    boxes, scores = _boxes(reading, outputs), _scores(reading, outputs)
    return boxes is not None and _are_probabilities(boxes) and not _are_probabilities(scores)


def _are_probabilities(values: NDArray[Any]) -> bool:
    return bool(np.all(np.isfinite(values)) and values.min(initial=0) >= -_SUM and values.max(initial=0) <= 1 + _SUM)


def _is_decoded(table: NDArray[Any], reading: Reading, size: Size) -> bool:
    """Tell whether boxes are places in the image already, and not offsets in their cells."""
    n_numbers = 5 + (reading.n_classes or 0)
    rows = table[0] if table.shape[2] == n_numbers else table[0].T
    anchors = find_grid(len(rows), *size).anchors
    pairs = ((rows[:, axis].astype(np.float64), anchors[:, axis]) for axis in (0, 1))
    return all(_correlation(values, cells) > _ALIKE for values, cells in pairs)


def _correlation(values: NDArray[Any], cells: NDArray[Any]) -> float:
    is_flat = not np.all(np.isfinite(values)) or values.std() == 0 or cells.std() == 0
    return 0.0 if is_flat else float(np.corrcoef(values, cells)[0, 1])


@dataclass(frozen=True)
class Names:
    """What is known of a model's classes.

    Attributes:
        n: How many the definition has.
        first: The first one's name.
        are_numbers: They are but numbers, so that nobody knows how many are real.
    """

    n: int
    first: str = ""
    are_numbers: bool = False


def settle(reading: Reading, outputs: Outputs, names: Names, size: Size) -> tuple[Reading, tuple[str, ...]]:
    """Settle what a reading leaves open.

    Args:
        reading: What is known.
        outputs: What the graph gave for one image.
        names: The definition's classes.
        size: Height and width of the image.

    Returns:
        The reading with its options settled, and what was assumed, in words.
    """
    options, notes = dict(reading.options), []
    boxes = _boxes(reading, outputs)
    if "box_units" not in options and boxes is not None and reading.head != "yolox":
        options["box_units"] = _units(boxes, size)
        if options["box_units"] == "fractions":
            notes.append("its boxes are fractions of the image's sides (box_units)")
    if reading.head == "detr":
        notes += _settle_queries(options, _scores(reading, outputs), names, are_logits=_are_logits(reading))
    if reading.head == "ssd":
        notes += _settle_candidates(options, _scores(reading, outputs), names)
        if "box_format" not in options and boxes is not None:
            options["box_format"] = _format(boxes)
            notes.append(f"its boxes are {options['box_format']} (box_format)")
    if reading.head == "boxes" and "label_offset" not in options and "labels" in reading.roles:
        options["label_offset"] = _offset(reading, outputs, names)
        notes.append(f"its classes are counted from {options['label_offset']} (label_offset)")
    return replace(reading, options=options), tuple(notes)


def _offset(reading: Reading, outputs: Outputs, names: Names) -> int:
    """Tell what the first class is counted as: torchvision's label 0 is the background, others count from it."""
    labels, boxes = outputs[reading.roles["labels"]], outputs[reading.roles["boxes"]]
    is_of_torchvision = boxes.ndim == 2 and labels.dtype.kind == "i"
    if names.are_numbers or "background" in names.first.lower() or (labels.size and labels.min() < 1):
        return 0
    return 1 if is_of_torchvision or (labels.size and labels.max() == names.n) else 0


def _boxes(reading: Reading, outputs: Outputs) -> NDArray[Any] | None:
    name = reading.roles.get("boxes")
    if name is not None:
        return outputs[name].reshape(-1, outputs[name].shape[-1])[:, :4]
    table = outputs[reading.roles["table"]] if "table" in reading.roles else None
    if table is None or table.size == 0:
        return None
    if reading.head == "batch-rows":
        return table[:, 1:5]
    is_last = reading.head.startswith(("rows", "detr")) or table.shape[2] < table.shape[1]
    first: NDArray[Any] = table[0] if is_last else table[0].T
    return first[:, :4]


def _scores(reading: Reading, outputs: Outputs) -> NDArray[Any]:
    name = reading.roles.get("logits") or reading.roles.get("scores")
    if name is not None:
        return outputs[name].reshape(-1, max(outputs[name].shape[-1], 1))
    return np.asarray(outputs[reading.roles["table"]][0, :, 4:])


def _are_logits(reading: Reading) -> bool:
    return reading.roles.get("logits", "").lower() in _LOGITS


def _units(boxes: NDArray[Any], size: Size) -> str:
    largest = float(np.abs(boxes[np.isfinite(boxes)]).max(initial=0.0))
    return "fractions" if 0 < largest <= _FRACTION and min(size) >= _SMALLEST else "pixels"


def _settle_queries(options: dict[str, Any], scores: NDArray[Any], names: Names, *, are_logits: bool) -> list[str]:
    """Settle what the numbers of a transformer's queries are.

    With a softmax the last column is "no object", which most queries are; sigmoids have nothing of the kind.
    """
    has_one_more = scores.shape[1] == names.n + 1
    says_nothing = _dominant(scores) == "last" and float(np.median(scores[:, -1])) > _NO_OBJECT
    is_softmax = has_one_more or (names.are_numbers and says_nothing)
    notes = []
    if "scores" not in options:
        if _are_probabilities(scores) and not are_logits:
            options["scores"] = "probabilities"
        else:
            options["scores"] = "softmax" if is_softmax else "sigmoid"
            notes.append(f"its scores are numbers that a {options['scores']} turns into probabilities (scores)")
    if "background" not in options:
        sums = scores.sum(axis=1)
        is_whole = options["scores"] == "probabilities" and has_one_more and np.mean(np.abs(sums - 1) < _SUM) > _SHARE
        options["background"] = "last" if options["scores"] == "softmax" or is_whole else "none"
        if options["background"] == "last":
            notes.append(f"the last of its {scores.shape[1]} classes is no object (background)")
    return notes


def _settle_candidates(options: dict[str, Any], scores: NDArray[Any], names: Names) -> list[str]:
    """Settle what the numbers of an SSD's candidates are: most of them are background, if there is a column for it."""
    has_one_more = scores.shape[1] == names.n + 1
    dominant = _dominant(scores)
    notes = []
    if "scores" not in options:
        is_whole = _are_probabilities(scores)
        options["scores"] = "probabilities" if is_whole else "softmax" if has_one_more or dominant else "sigmoid"
        if not is_whole:
            notes.append(f"its scores are numbers that a {options['scores']} turns into probabilities (scores)")
    if "background" not in options:
        is_whole = options["scores"] == "softmax" or np.mean(np.abs(scores.sum(axis=1) - 1) < _SUM) > _SHARE
        has_one = scores.shape[1] > 1 and (has_one_more or (names.are_numbers and is_whole))
        options["background"] = (dominant or "first") if has_one else "none"
        if has_one:
            notes.append(f"the {options['background']} of its {scores.shape[1]} classes is the background (background)")
    return notes


def _dominant(scores: NDArray[Any]) -> str:
    """Tell which outer column is the strongest of most rows, as a background is; empty where none is."""
    if scores.shape[1] < 2 or len(scores) == 0:
        return ""
    best = scores.argmax(axis=1)
    shares = {"first": np.mean(best == 0), "last": np.mean(best == scores.shape[1] - 1)}
    place = max(shares, key=lambda key: float(shares[key]))
    return place if shares[place] > 0.5 else ""


def _format(boxes: NDArray[Any]) -> str:
    """Tell corners from centres and sides: corners are in order."""
    in_order = np.mean((boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1]))
    return "xyxy" if in_order > _SHARE else "cxcywh"
