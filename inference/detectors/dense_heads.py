"""Dense heads of the YOLO family: one candidate for each cell of each output grid, before suppression.

Candidates stand in one row, level after level from the finest grid, each grid row by row. A level's cell (i, j) with
stride s has its anchor at ((j + 0.5) s, (i + 0.5) s).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections, FloatArray, make_detections
from ..errors import ModelIncompatibleError

_STRIDES = (
    (8, 16, 32), (8,), (4,), (16,), (4, 8, 16, 32), (8, 16, 32, 64), (16, 32), (8, 16), (4, 8, 16), (4, 8), (32,),
    (2,), (8, 16, 32, 64, 128),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DenseGrid:
    """The grid behind a row of candidates.

    Shape:
        anchors (A, 2), network pixels.
    """

    anchors: FloatArray
    stride: int
    """The coarsest level's."""


def find_grid(n_candidates: int, height: int, width: int) -> DenseGrid:
    """Find the levels that make up a row of candidates.

    Raises:
        ModelIncompatibleError: no usual set of strides gives that number.
    """
    for repeats in (1, 3):
        for strides in _STRIDES:
            sizes = [(height // s) * (width // s) for s in strides]
            if repeats * sum(sizes) == n_candidates and height % max(strides) == width % max(strides) == 0:
                levels = [np.tile(_cell_centres(height // s, width // s, s), (repeats, 1)) for s in strides]
                return DenseGrid(np.concatenate(levels), max(strides))
    raise ModelIncompatibleError(
        f"The network gives {n_candidates} candidates for {width} x {height} pixels, which fits no YOLO grid.",
        hint="Export the model without reshaping of its output, or with suppression in the graph (head 'boxes').",
    )


def _cell_centres(n_rows: int, n_columns: int, stride: int) -> FloatArray:
    y, x = np.mgrid[0:n_rows, 0:n_columns]
    return (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * stride


@dataclass(frozen=True)
class DenseHead:
    """How to read the rows of the output: cx, cy, w, h [, objectness], one score a class."""

    n_classes: int
    has_objectness: bool

    @property
    def n_rows(self) -> int:
        """Give the number of values of one candidate."""
        return 4 + self.has_objectness + self.n_classes

    def rows_first(self, output: NDArray[Any]) -> NDArray[Any]:
        """Give the output as (N, rows, A), whichever way round it came.

        Raises:
            ModelIncompatibleError: neither axis has the number of rows that the classes ask for.
        """
        if output.ndim == 3 and output.shape[1] == self.n_rows:
            return output
        if output.ndim == 3 and output.shape[2] == self.n_rows:
            return output.transpose(0, 2, 1)
        raise ModelIncompatibleError(
            f"The network's output has shape {output.shape}; with {self.n_classes} classes one axis should be "
            f"{self.n_rows} long.",
            hint="Check the classes of the definition, and its 'head'.",
        )

    def decode(self, rows: NDArray[Any], grid: DenseGrid, threshold: float) -> Detections:
        """Read one image's candidates.

        Shape:
            rows (rows, A).

        Returns:
            The candidates whose best class scores above the threshold.
        """
        scores = rows[4 + self.has_objectness :]
        if self.has_objectness:
            scores = scores * rows[4]
        labels = scores.argmax(axis=0)
        best = np.take_along_axis(scores, labels[None], axis=0)[0]
        index = np.flatnonzero(~(best <= threshold))  # what is no number stays, for the run to count and drop
        cx, cy, w, h = rows[:4, index].astype(np.float64)
        boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1)
        return make_detections(boxes, best[index], labels[index], grid.anchors[index])
