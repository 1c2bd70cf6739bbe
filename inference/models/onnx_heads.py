"""Which layout the outputs of an ONNX graph have: told from their names, shapes and types.

QGIS asks with what the file declares, the worker with what the graph really gives. What stays open then, units or
the meaning of scores, the values of one tile tell (detectors/heads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Union

from .onnx_file import TensorInfo

HEADS: Mapping[str, str] = {
    "yolov8": "box",
    "yolov5": "box",
    "yolox": "box",
    "yolov8-pose": "box",
    "yolov8-seg": "polygon",
    "yolov5-seg": "polygon",
    "yolov8-obb": "oriented",
    "rows": "box",
    "rows-seg": "polygon",
    "rows-obb": "oriented",
    "batch-rows": "box",
    "detr": "box",
    "ssd": "box",
    "boxes": "box",
}
"""Layouts of outputs, and what their objects are; docs/model_formats.md draws each."""

STRIDES = (
    (8, 16, 32), (8,), (4,), (16,), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32), (8, 16), (4, 8, 16), (4, 8), (32,),
    (2,), (8, 16, 32, 64, 128),
)  # fmt: skip
"""Strides of the levels of dense heads, the usual ones first."""
ANCHORS = 3
"""Boxes of each cell of the older heads."""
QUERIES = (100, 200, 300, 400, 500, 900)
"""How many objects transformers and end-to-end heads usually tell of; some are the cells of a small image, too."""
MOST_ROWS = 1000
"""Objects that a graph with suppression inside gives at most; candidates are more, of all but tiny images."""
_N_ROW, _N_ROW_OBB, _N_BATCH_ROW = 6, 7, 7
_N_AXES_OF_RAW_MAPS = 5

_Shape = tuple[Union[int, None], ...]

_ROLES: Mapping[str, tuple[str, ...]] = {
    "boxes": ("boxes", "det_boxes", "detection_boxes", "nmsed_boxes", "pred_boxes", "dets", "bboxes"),
    "scores": ("scores", "det_scores", "detection_scores", "nmsed_scores", "confidences", "pred_scores"),
    "labels": (
        "labels",
        "det_classes",
        "detection_classes",
        "nmsed_classes",
        "classes",
        "class_ids",
        "class_idx",
        "pred_classes",
        "pred_labels",
        "category_ids",
        "category_id",
        "class_id",
    ),
    "masks": ("masks", "detection_masks", "det_masks"),
    "logits": ("logits", "pred_logits"),
    "counts": ("num_dets", "num_detections"),
}
_IN_TFLITE = {"": "boxes", ":1": "labels", ":2": "scores", ":3": "counts"}


@dataclass(frozen=True)
class Reading:
    """One way of reading a graph's outputs.

    Attributes:
        head: One of HEADS.
        options: What else decides the reading: box_format, box_units, scores, background, label_offset, masks.
        n_classes: How many classes it tells apart; None where the shapes do not say.
        roles: Name of the output of each role.
        why: How it was recognised, for people.
    """

    head: str
    options: Mapping[str, Any] = field(default_factory=dict)
    n_classes: int | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    why: str = ""

    @property
    def geometry(self) -> str:
        """Give what its objects are: "box", "polygon" or "oriented"."""
        return "polygon" if self.options.get("masks") else HEADS[self.head]


def grid_of(n: int, height: int, width: int) -> tuple[tuple[int, ...], int] | None:
    """Give the strides of the levels that make up a row of so many candidates, and the boxes of a cell.

    None where no usual set of strides gives that number.
    """
    for repeats in (1, ANCHORS):
        for strides in STRIDES:
            cells = sum((height // s) * (width // s) for s in strides)
            if repeats * cells == n and height % max(strides) == width % max(strides) == 0:
                return strides, repeats
    return None


def roles_of(outputs: Sequence[TensorInfo]) -> dict[str, str]:
    """Give the output of each role that has a usual name for it; what else there is, by shape and type."""
    roles: dict[str, str] = {}
    for item in outputs:
        plain = item.name.lower().rpartition("/")[2]
        for role, names in _ROLES.items():
            if plain.split(":")[0] in names:
                roles.setdefault(role, item.name)
        if plain.startswith("tflite_detection_postprocess"):
            roles.setdefault(_IN_TFLITE.get(plain[len("tflite_detection_postprocess") :], ""), item.name)
    roles.pop("", None)
    if {"boxes", "scores"} <= set(roles) and "labels" not in roles:
        shapes = {item.name: item.shape for item in outputs}
        others = [item.name for item in outputs if item.name not in roles.values() and item.dtype in ("int64", "int32")
                  and len(item.shape or ()) == len(shapes[roles["scores"]] or ())]  # fmt: skip
        roles.update({"labels": others[0]} if len(others) == 1 else {})
    return roles if "boxes" in roles else {**_roles_by_form(outputs), **roles}


def _roles_by_form(outputs: Sequence[TensorInfo]) -> dict[str, str]:
    """Tell boxes, scores, labels and masks of one image apart where their names say nothing, as in exports by hand."""
    shapes = {item.name: item.shape or () for item in outputs}
    boxes = [name for name, shape in shapes.items() if len(shape) in (2, 3) and shape[-1] == 4]
    if len(boxes) != 1:
        return {}
    rank = len(shapes[boxes[0]])
    flat = [item for item in outputs if len(shapes[item.name]) == rank - 1]
    labels = [item.name for item in flat if item.dtype in ("int64", "int32")]
    scores = [item.name for item in flat if item.dtype.startswith("float")]
    masks = [name for name, shape in shapes.items() if len(shape) == 4]
    if len(labels) != 1 or len(scores) != 1:
        return {}
    found = {"boxes": boxes[0], "labels": labels[0], "scores": scores[0]}
    return {**found, "masks": masks[0]} if len(masks) == 1 else found


@dataclass(frozen=True)
class Question:
    """What is known when a layout is looked for.

    Attributes:
        outputs: The graph's outputs.
        n_classes: How many classes the definition names; None where it does not.
        size: Height and width of the image in pixels; None where the graph takes any.
        task: What Ultralytics' metadata call the task; empty where there are none.
        is_end_to_end: The metadata say that suppression is not needed.
    """

    outputs: tuple[TensorInfo, ...]
    n_classes: int | None = None
    size: tuple[int, int] | None = None
    task: str = ""
    is_end_to_end: bool = False

    def fits_grid(self, n: int | None) -> int:
        """Give how many candidates a cell has if so many make up a grid; 0 if they do not, or nobody knows."""
        if n is None or self.size is None:
            return 0
        grid = grid_of(n, *self.size)
        return grid[1] if grid else 0


def readings(question: Question) -> list[Reading]:
    """Give the ways in which outputs can be read, the likeliest first; none where they are foreign."""
    roles = roles_of(question.outputs)
    named = _by_roles(question, roles)
    if named:
        return [named]
    shapes = [item.shape or () for item in question.outputs]
    if len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] == _N_BATCH_ROW:
        return [Reading("batch-rows", why="seven columns: image, box, class, score")]
    # Of the older YOLOs some exports hand the raw maps out beside the table.
    shapes = [shape for shape in shapes if len(shape) != _N_AXES_OF_RAW_MAPS] if len(shapes) > 1 else shapes
    table = [item for item in question.outputs if len(item.shape or ()) == 3]
    maps = [item for item in question.outputs if len(item.shape or ()) == 4]
    if len(table) == 1 and len(maps) <= 1 and len(shapes) == 1 + len(maps):
        prototypes = maps[0] if maps else None
        return _of_table(question, table[0], prototypes)
    if len(table) == 2 and len(shapes) == 2:
        pairs = ((table[0], table[1]), (table[1], table[0]))
        return [reading for boxes, scores in pairs for reading in _of_pair(question, boxes, scores)]
    return []


def _by_roles(question: Question, roles: Mapping[str, str]) -> Reading | None:
    if "boxes" not in roles:
        return None
    shapes = {item.name: item.shape or () for item in question.outputs}
    boxes = shapes[roles["boxes"]]
    told = "outputs " + ", ".join(roles.values())
    if "logits" in roles:
        n = shapes[roles["logits"]][-1] if shapes[roles["logits"]] else None
        return Reading("detr", {"box_format": "cxcywh", "box_units": "fractions"}, n, dict(roles), told)
    is_dets = roles["boxes"].lower().endswith("dets")
    labels = shapes.get(roles.get("labels", ""), ())
    if is_dets and len(labels) == 3:  # RF-DETR calls its logits labels
        roles = {"boxes": roles["boxes"], "logits": roles["labels"]}
        queries = {"box_format": "cxcywh", "box_units": "fractions", "scores": "sigmoid"}
        return Reading("detr", queries, labels[-1], roles, told)
    if "scores" not in roles and not (is_dets and "labels" in roles and (not boxes or boxes[-1] in (5, None))):
        return None
    scores = shapes.get(roles.get("scores", ""), ())
    if "labels" not in roles and len(scores) == 3 and len(boxes) in (0, 3):
        return Reading("ssd", {}, None, dict(roles), told)
    options: dict[str, Any] = {"masks": True} if "masks" in roles else {}
    if roles["boxes"].lower().startswith(("detection_boxes", "tflite_detection")):
        offset = 0 if roles["boxes"].lower().startswith("tflite") else 1
        options |= {"box_format": "yxyx", "box_units": "fractions", "label_offset": offset}
    return Reading("boxes", options, None, dict(roles), told)


def _of_pair(question: Question, boxes: TensorInfo, scores: TensorInfo) -> list[Reading]:
    """Read two tables of the same objects: four numbers of a box in one, a score for each class in the other."""
    if (boxes.shape or ())[-1] != 4 or (boxes.shape or ())[1] != (scores.shape or ())[1]:
        return []
    n_objects, n_columns = (scores.shape or ())[1], (scores.shape or ())[-1]
    told = f"a table of boxes ({boxes.name}) and one of scores ({scores.name})"
    if n_objects in QUERIES or (n_objects is not None and n_objects <= MOST_ROWS and not question.fits_grid(n_objects)):
        roles = {"boxes": boxes.name, "logits": scores.name}
        return [Reading("detr", {"box_format": "cxcywh"}, n_columns, roles, told)]
    return [Reading("ssd", {}, None, {"boxes": boxes.name, "scores": scores.name}, told)]


def _of_table(question: Question, table: TensorInfo, prototypes: TensorInfo | None) -> list[Reading]:
    """Read one table of objects or candidates, perhaps with prototypes of masks beside it."""
    shape: _Shape = table.shape or ()
    n_masks = (prototypes.shape or ())[1] if prototypes is not None else 0
    if n_masks is None:
        return []
    roles = {"table": table.name, **({"prototypes": prototypes.name} if prototypes is not None else {})}
    found: list[tuple[int, Reading]] = []
    for axis in (1, 2):
        n_numbers, n_objects = shape[axis], shape[3 - axis]
        if n_numbers is not None:
            found += _Table(question, n_numbers, n_objects, n_masks, axis == 2).readings()
    return [replace(reading, roles=roles) for _, reading in sorted(found, key=lambda item: item[0])]


@dataclass(frozen=True)
class _Table:
    """A table with so many numbers an object, in its last axis or before it, and so many of them for a mask."""

    question: Question
    n_numbers: int
    n_objects: int | None
    n_masks: int
    is_last: bool

    @property
    def seg(self) -> str:
        return "-seg" if self.n_masks else ""

    @property
    def is_obb(self) -> bool:
        return self.question.task == "obb"

    @property
    def is_grid(self) -> int:
        return 0 if self.is_last and self.n_objects in QUERIES else self.question.fits_grid(self.n_objects)

    @property
    def is_few(self) -> bool:
        """So few that they are objects, not candidates."""
        return self.n_objects is not None and self.n_objects <= MOST_ROWS and not self.is_grid

    def readings(self) -> list[tuple[int, Reading]]:
        """Give the readings with their ranks, 0 for the likeliest."""
        if self._are_rows():
            head = "rows-obb" if self.is_obb else "rows" + self.seg
            rows = [(0, Reading(head, why=f"{self.n_numbers} numbers an object: box, score, class"))]
        else:
            rows = []
        if self.question.is_end_to_end:
            return rows
        known = self.question.n_classes
        if self.question.task == "pose" and known is not None:
            why = f"{self.n_numbers} numbers a candidate: box, classes, key points"
            fits = self.n_numbers > 4 + known and not self.is_last
            return [(1, Reading("yolov8-pose", n_classes=known, why=why))] if fits else []
        return (
            rows
            + self._plain(self.n_numbers - 4 - self.n_masks - self.is_obb)
            + self._with_objectness(self.n_numbers - 5 - self.n_masks)
        )

    def _are_rows(self) -> bool:
        n = (_N_ROW_OBB if self.is_obb else _N_ROW) + self.n_masks
        return self.is_last and self.n_numbers == n and not self.is_grid

    def _plain(self, n_classes: int) -> list[tuple[int, Reading]]:
        """Read a box and a score for each class."""
        known = self.question.n_classes
        why = f"{self.n_numbers} numbers a candidate: box, a score a class"
        if n_classes <= 0 or known not in (None, n_classes):
            return []
        if known is None and self.n_objects is not None:
            is_other_axis = self.n_numbers > self.n_objects or (self.is_few and not self.is_last)
            if is_other_axis or self.is_grid == ANCHORS:
                return []
        if self.is_few and self.is_last:
            if self.n_masks or self.is_obb:
                return []
            return [(1, Reading("detr", {"box_format": "cxcywh", "scores": "probabilities"}, n_classes, why=why))]
        head = "yolov8-obb" if self.is_obb else "yolov8" + self.seg
        # Of YOLOv8 and its successors the candidates come last, of YOLOv5 the numbers.
        return [(4 if self.is_last and known is None else 1, Reading(head, n_classes=n_classes, why=why))]

    def _with_objectness(self, n_classes: int) -> list[tuple[int, Reading]]:
        known = self.question.n_classes
        if n_classes <= 0 or self.is_obb or self.is_few or known not in (None, n_classes):
            return []
        if known is None and not self.is_last:
            return []
        why = f"{self.n_numbers} numbers a candidate: box, objectness, a score a class"
        found = [(2, Reading("yolov5" + self.seg, n_classes=n_classes, why=why))]
        if self.is_grid != ANCHORS and not self.n_masks:
            raw = f"{self.n_numbers} numbers a candidate: offsets in its cell, objectness, a score a class"
            found.append((3, Reading("yolox", n_classes=n_classes, why=raw)))
        return found
