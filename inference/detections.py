"""Detections: many boxes at once, as a struct of arrays.

Pixel-edge convention: pixel (column 3, row 5) covers x in [3, 4) and y in [5, 6); x runs right, y runs down. The
coordinate space (network pixels, raster pixels) is the one of the function that hands the detections out.

    anchor: the point that decides which tile owns the detection (tiling.py): the centre of the output cell that made
    the box where a dense head gives one, the centre of the box otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """N detected objects.

    Shape:
        boxes (N, 4) float64, x0 y0 x1 y1 with x0 <= x1 and y0 <= y1; scores (N,) float32 in 0..1; labels (N,) int32,
        indices into the model definition's classes; anchors (N, 2) float64, x y.
    """

    boxes: FloatArray
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    anchors: FloatArray

    def __post_init__(self) -> None:
        """Check the shapes once, where the arrays come together."""
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.anchors.shape != (n, 2):
            raise ValueError(f"boxes {self.boxes.shape} and anchors {self.anchors.shape} do not belong together")
        if self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"{n} boxes, but scores {self.scores.shape} and labels {self.labels.shape}")

    def __len__(self) -> int:
        """Give the number of detections."""
        return len(self.boxes)

    def take(self, index: NDArray[Any]) -> Detections:
        """Give the detections that an index array or a boolean mask selects."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index], self.anchors[index])

    def shift(self, x: float, y: float) -> Detections:
        """Give the detections moved by (x, y)."""
        offset = np.array([x, y], dtype=np.float64)
        return replace(self, boxes=self.boxes + np.tile(offset, 2), anchors=self.anchors + offset)


def make_detections(
    boxes: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], anchors: NDArray[Any] | None = None
) -> Detections:
    """Build detections from arrays of any numeric type; without anchors the boxes' centres serve."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if anchors is None:
        anchors = (boxes[:, :2] + boxes[:, 2:]) / 2
    return Detections(
        boxes,
        np.asarray(scores, dtype=np.float32).reshape(-1),
        np.asarray(labels, dtype=np.int32).reshape(-1),
        np.asarray(anchors, dtype=np.float64).reshape(-1, 2),
    )


def no_detections() -> Detections:
    """Give the empty set."""
    return make_detections(np.empty((0, 4)), np.empty(0), np.empty(0))


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Join detections in the order given."""
    if not parts:
        return no_detections()
    return Detections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.anchors for part in parts]),
    )


_RECORD = np.dtype([("box", "<f8", 4), ("anchor", "<f8", 2), ("score", "<f4"), ("label", "<i4")])


def to_bytes(detections: Detections) -> bytes:
    """Pack detections into the journal's form: little-endian records of 56 bytes, losslessly."""
    records = np.empty(len(detections), dtype=_RECORD)
    records["box"], records["anchor"] = detections.boxes, detections.anchors
    records["score"], records["label"] = detections.scores, detections.labels
    return records.tobytes()


def from_bytes(data: bytes) -> Detections:
    """Unpack what `to_bytes` packed."""
    records = np.frombuffer(data, dtype=_RECORD)
    return make_detections(records["box"], records["score"], records["label"], records["anchor"])
