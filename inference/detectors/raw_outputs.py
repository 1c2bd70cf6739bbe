"""Reading a network's bare output, as a program of PyTorch hands it over: which head it has, and its candidates.

The heads are those of ONNX graphs. `find_head` is the one place that decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections
from ..errors import ModelUnsupportedError
from ..models.carriers.class_names import are_numbered
from ..models.definition import ModelDefinition
from .heads.dense import DenseHead, Layout

_AXES = 3


class RawHead(Protocol):
    """How the tensors for one image become detections."""

    @property
    def is_dense(self) -> bool:
        """Tell whether it gives candidates before suppression."""
        ...

    def decode(self, outputs: Mapping[str, NDArray[Any]], side: int, threshold: float) -> Detections:
        """Read the tensors for one image of `side` x `side` pixels, each with a batch axis of one."""
        ...


def find_head(definition: ModelDefinition, shapes: Mapping[str, tuple[int, ...]]) -> RawHead:
    """Find the head of a network by the shapes of its tensors for one image.

    Raises:
        ModelUnsupportedError: none that Kestrel knows.
    """
    dense = [(name, shape) for name, shape in shapes.items() if len(shape) == _AXES and shape[0] == 1]
    # YOLOv5 hands its three grids over once more, with five axes.
    others = [shape for shape in shapes.values() if len(shape) != _AXES + 2]
    head = str(definition.options.get("head", ""))
    if len(dense) == 1 and len(others) == 1 and head != "boxes":
        name, shape = dense[0]
        found = _dense(definition, shape, head)
        if found is not None:
            return _DenseOutput(name, found)
    told = ", ".join(f"a tensor {list(shape)}" for shape in list(shapes.values())[:8])
    raise ModelUnsupportedError(
        f"The model's program cannot be used: it gives {told}, which with {len(definition.classes)} classes is no head "
        "that Kestrel knows.",
        hint="Check the classes, or export the model with suppression in it: boxes, scores and labels.",
    )


def _dense(definition: ModelDefinition, shape: tuple[int, ...], head: str) -> Layout | None:
    rows, is_transposed = min(shape[1:]), shape[2] < shape[1]
    n = len(definition.classes)
    if are_numbered([item.name for item in definition.classes]):
        head = head or ("yolov5" if is_transposed else "yolov8")
        n = min(n, rows - (5 if head == "yolov5" else 4))
    known = [Layout(n, name == "yolov5") for name in ("yolov8", "yolov5") if head in ("", name)]
    return next((item for item in known if n > 0 and item.n_numbers in shape[1:]), None)


@dataclass(frozen=True)
class _DenseOutput:
    name: str
    layout: Layout
    is_dense: bool = True

    def decode(self, outputs: Mapping[str, NDArray[Any]], side: int, threshold: float) -> Detections:
        table = {"table": np.asarray(outputs[self.name])}
        return DenseHead(self.layout, threshold).read(table, 1, (side, side))[0]
