"""Rows of finished objects: box, score and class side by side, after suppression in the graph or by training.

YOLOv10, YOLO26 and exports with suppression inside give (N, M, 6), empty rows with a score of 0 at the end; exports of
YOLOv7 give one row for all images, (M, 7), with the image's number first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...detections import Detections, make_detections
from ...models.onnx_heads import Reading
from . import Head, HeadSettings, Outputs, Size
from .boxes import above, rotated_detections, to_xyxy


@dataclass(frozen=True)
class RowsHead:
    """(N, M, 6): box, score, class; rotated boxes (N, M, 7): cx cy w h, score, class, angle in radians."""

    settings: HeadSettings
    box_format: str = "xyxy"
    units: str = "pixels"
    label_offset: int = 0
    is_oriented: bool = False

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the one output that it reads."""
        return {"table": 3}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        return [self._decode(rows, size) for rows in outputs["table"][:n]]

    def _decode(self, rows: NDArray[Any], size: Size) -> Detections:
        scores, labels = rows[:, 4], labels_of(rows[:, 5], self.label_offset)
        keep = above(scores, self.settings.threshold) & (labels >= 0) & (labels < self.settings.n_classes)
        rows, scores, labels = rows[keep], scores[keep], labels[keep]
        if self.is_oriented:
            sides = np.tile([size[1], size[0]], 2) if self.units == "fractions" else np.ones(4)
            rectangles = np.concatenate([rows[:, :4] * sides, rows[:, 6:7]], axis=1)
            return rotated_detections(rectangles, scores, labels)
        return make_detections(to_xyxy(rows[:, :4], self.box_format, self.units, size), scores, labels)


@dataclass(frozen=True)
class BatchRowsHead:
    """(M, 7) for all images together: image, x0 y0 x1 y1, class, score."""

    settings: HeadSettings
    units: str = "pixels"

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the one output that it reads."""
        return {"table": 2}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        table = outputs["table"]
        images, labels = labels_of(table[:, 0], 0), labels_of(table[:, 5], 0)
        is_known = above(table[:, 6], self.settings.threshold) & (labels >= 0) & (labels < self.settings.n_classes)
        found = []
        for number in range(n):
            keep = is_known & (images == number)
            boxes = to_xyxy(table[keep, 1:5], "xyxy", self.units, size)
            found.append(make_detections(boxes, table[keep, 6], labels[keep]))
        return found


def labels_of(values: NDArray[Any], offset: int) -> NDArray[np.int64]:
    """Give the classes' numbers, counted from 0; -1 for what is no number."""
    return np.rint(np.nan_to_num(values.astype(np.float64), nan=-1.0 + offset)).astype(np.int64) - offset


def _rows(reading: Reading, settings: HeadSettings) -> RowsHead:
    options = reading.options
    is_oriented = reading.head == "rows-obb"
    return RowsHead(
        settings,
        str(options.get("box_format", "xyxy")),
        str(options.get("box_units", "pixels")),
        int(options.get("label_offset", 0)),
        is_oriented,
    )


def _batch_rows(reading: Reading, settings: HeadSettings) -> BatchRowsHead:
    return BatchRowsHead(settings, str(reading.options.get("box_units", "pixels")))


MAKERS: Mapping[str, Callable[[Reading, HeadSettings], Head]] = {
    "rows": _rows,
    "rows-obb": _rows,
    "batch-rows": _batch_rows,
}
