"""Dense heads of the YOLO family: one candidate for each cell of each output grid, before suppression.

Candidates stand in one row, level after level from the finest grid, each grid row by row. A level's cell (i, j) with
stride s has its anchor at ((j + 0.5) s, (i + 0.5) s).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...detections import Detections, FloatArray, make_detections
from ...errors import ModelIncompatibleError
from ...models.onnx_heads import Reading, grid_of
from . import HeadSettings, Outputs, Size
from .boxes import above, activated, rotated_detections, to_xyxy


@dataclass(frozen=True, eq=False)
class DenseGrid:
    """The grid behind a row of candidates.

    Shape:
        anchors (A, 2), network pixels; strides (A,), of each candidate's level.
    """

    anchors: FloatArray
    strides: FloatArray

    @property
    def stride(self) -> int:
        """Give the coarsest level's stride."""
        return int(self.strides.max())


def find_grid(n_candidates: int, height: int, width: int) -> DenseGrid:
    """Find the levels that make up a row of candidates.

    Raises:
        ModelIncompatibleError: no usual set of strides gives that number.
    """
    found = grid_of(n_candidates, height, width)
    if found is None:
        raise ModelIncompatibleError(
            f"The network gives {n_candidates} candidates for {width} x {height} pixels, which fits no YOLO grid.",
            hint="Export the model without reshaping of its output, or with suppression in the graph (head 'rows').",
        )
    levels, repeats = found
    anchors = [np.tile(_cell_centres(height // s, width // s, s), (repeats, 1)) for s in levels]
    strides = [np.full(len(cells), float(s)) for cells, s in zip(anchors, levels)]
    return DenseGrid(np.concatenate(anchors), np.concatenate(strides))


def _cell_centres(n_rows: int, n_columns: int, stride: int) -> FloatArray:
    y, x = np.mgrid[0:n_rows, 0:n_columns]
    return (np.stack([x.ravel(), y.ravel()], axis=1) + 0.5) * stride


@dataclass(frozen=True)
class Layout:
    """How to read the numbers of one candidate: box, [objectness,] a score a class, [more].

    Attributes:
        n_classes: Scores.
        has_objectness: A number stands before the scores that multiplies them.
        is_raw: The box is offsets from the cell's corner in cells, and logarithms of its sides in cells (YOLOX).
        n_more: Numbers behind the scores; -1 for any number of them.
        units: "pixels" or "fractions", of the box.
        scores: One of definition.SCORES.
    """

    n_classes: int
    has_objectness: bool = False
    is_raw: bool = False
    n_more: int = 0
    units: str = "pixels"
    scores: str = "probabilities"

    @property
    def n_numbers(self) -> int:
        """Give the fewest numbers of one candidate."""
        return 4 + self.has_objectness + self.n_classes + max(self.n_more, 0)

    def _fits(self, n: int) -> bool:
        return n > self.n_numbers if self.n_more < 0 else n == self.n_numbers

    def numbers_first(self, output: NDArray[Any]) -> NDArray[Any]:
        """Give the output as (N, numbers, A), whichever way round it came.

        Raises:
            ModelIncompatibleError: neither axis has the number that the classes ask for.
        """
        if output.ndim == 3 and self._fits(output.shape[1]):
            return output
        if output.ndim == 3 and self._fits(output.shape[2]):
            return output.transpose(0, 2, 1)
        raise ModelIncompatibleError(
            f"The network's output has shape {output.shape}; with {self.n_classes} classes one axis should be "
            f"{self.n_numbers} long.",
            hint="Check the classes of the definition, and its 'head'.",
        )

    def chosen(self, numbers: NDArray[Any], threshold: float) -> tuple[NDArray[np.intp], NDArray[Any], NDArray[Any]]:
        """Give index, score and class of the candidates whose best class scores above the threshold.

        Shape:
            numbers (numbers, A) of one image; gives three arrays of equal length.
        """
        start = 4 + self.has_objectness
        scores = numbers[start : start + self.n_classes]
        objectness = numbers[4] if self.has_objectness else None
        if self.scores != "probabilities":
            scores = activated(scores.T, self.scores).T
            objectness = None if objectness is None else activated(objectness, self.scores)
        if objectness is not None:
            scores = scores * objectness
        labels = scores.argmax(axis=0)
        best = np.take_along_axis(scores, labels[None], axis=0)[0]
        index = np.flatnonzero(above(best, threshold))
        return index, best[index], labels[index]

    def centred(self, numbers: NDArray[Any], grid: DenseGrid, size: Size) -> FloatArray:
        """Give boxes as cx cy w h in network pixels.

        Shape:
            numbers (>= 4, M) of some candidates, and their part of the grid; gives (M, 4).

        Source:
            of raw boxes: Ge et al., "YOLOX: Exceeding YOLO Series in 2021", and its export.
        """
        box: FloatArray = numbers[:4].T.astype(np.float64)
        if self.is_raw:
            strides = grid.strides[:, None]
            with np.errstate(over="ignore"):
                return np.concatenate([grid.anchors + (box[:, :2] - 0.5) * strides, np.exp(box[:, 2:]) * strides], 1)
        return box * np.tile(np.array([size[1], size[0]], np.float64), 2) if self.units == "fractions" else box


@dataclass(frozen=True)
class DenseHead:
    """A table of candidates, of boxes or rotated boxes.

    Attributes:
        layout: The numbers of a candidate.
        threshold: Lowest score.
        table: Role of the output.
        is_oriented: The last number is an angle in radians.
    """

    layout: Layout
    threshold: float
    is_oriented: bool = False

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the one output that it reads."""
        return {"table": 3}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find candidates, see `Head.read`."""
        numbers = self.layout.numbers_first(outputs["table"])[:n]
        grid = find_grid(numbers.shape[2], *size)
        return [self._decode(image, grid, size) for image in numbers]

    def _decode(self, numbers: NDArray[Any], grid: DenseGrid, size: Size) -> Detections:
        index, scores, labels = self.layout.chosen(numbers, self.threshold)
        part = DenseGrid(grid.anchors[index], grid.strides[index])
        boxes = self.layout.centred(numbers[:, index], part, size)
        if self.is_oriented:
            rectangles = np.concatenate([boxes, numbers[-1, index, None].astype(np.float64)], axis=1)
            return rotated_detections(rectangles, scores, labels, part.anchors)
        return make_detections(to_xyxy(boxes, "cxcywh", "pixels", size), scores, labels, part.anchors)


def layout_of(reading: Reading, settings: HeadSettings, n_more: int = 0) -> Layout:
    """Give the layout of a reading's candidates."""
    options = reading.options
    return Layout(
        settings.n_classes,
        has_objectness=reading.head.startswith(("yolov5", "yolox")),
        is_raw=reading.head == "yolox",
        n_more=n_more,
        units=str(options.get("box_units", "pixels")),
        scores=str(options.get("scores", "probabilities")),
    )


def _boxes(reading: Reading, settings: HeadSettings) -> DenseHead:
    return DenseHead(layout_of(reading, settings), settings.threshold)


def _pose(reading: Reading, settings: HeadSettings) -> DenseHead:
    return DenseHead(layout_of(reading, settings, n_more=-1), settings.threshold)


def _oriented(reading: Reading, settings: HeadSettings) -> DenseHead:
    return DenseHead(layout_of(reading, settings, n_more=1), settings.threshold, is_oriented=True)


MAKERS = {"yolov8": _boxes, "yolov5": _boxes, "yolox": _boxes, "yolov8-pose": _pose, "yolov8-obb": _oriented}
