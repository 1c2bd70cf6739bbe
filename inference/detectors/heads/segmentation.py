"""Masks made of prototypes: each object is a weighted sum of a few maps of the whole image.

Source:
    Bolya et al., "YOLACT: Real-time Instance Segmentation" (2019), as in YOLOv5's and YOLOv8's segmentation models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ...detections import Detections, FloatArray, concatenate, make_detections
from ...errors import ModelIncompatibleError
from ...merge import suppress_once
from ...models.onnx_heads import Reading
from ...outlines import outline
from . import HeadSettings, Outputs, Size
from .boxes import above, to_xyxy
from .dense import Layout, find_grid, layout_of


def prototype_outlines(prototypes: NDArray[Any], weights: NDArray[Any], boxes: FloatArray, size: Size) -> list[Any]:
    """Give the outline of each object, None where its mask is empty.

    A mask is made in the window of its box alone, so memory does not grow with the number of objects.

    Shape:
        prototypes (K, h, w), coarser than the image; weights (N, K); boxes (N, 4) in network pixels; gives N polygons
        in network pixels.
    """
    _, height, width = prototypes.shape
    ratio = np.array([width / size[1], height / size[0]])
    maps = prototypes.astype(np.float32)
    return [_outline(maps, row.astype(np.float32), box, size, ratio) for row, box in zip(weights, boxes)]


def _outline(
    maps: NDArray[np.float32], weights: NDArray[np.float32], box: FloatArray, size: Size, ratio: FloatArray
) -> Any:
    # A pixel is in the box if its centre is.
    left, top = np.maximum(np.ceil(box[:2] - 0.5), 0).astype(int)
    right, bottom = np.minimum(np.ceil(box[2:] - 0.5), [size[1], size[0]]).astype(int)
    if right <= left or bottom <= top:
        return None
    columns = (np.arange(left, right) + 0.5) * ratio[0] - 0.5
    rows = (np.arange(top, bottom) + 0.5) * ratio[1] - 0.5
    # Only the part of the maps that lies under the box is summed.
    first = np.maximum(np.floor([rows[0], columns[0]]).astype(int), 0)
    last = np.minimum(np.floor([rows[-1], columns[-1]]).astype(int) + 2, maps.shape[1:])
    first = np.minimum(first, last - 1)
    part = np.tensordot(weights, maps[:, first[0] : last[0], first[1] : last[1]], axes=1)
    return outline(sampled(part, rows - first[0], columns - first[1]) > 0, float(left), float(top))


def sampled(values: NDArray[np.float32], rows: FloatArray, columns: FloatArray) -> NDArray[np.float32]:
    """Give values between the cells' centres, bilinear; beyond the outer centres the outermost values hold."""
    low_y, high_y, share_y = _neighbours(rows, values.shape[0])
    low_x, high_x, share_x = _neighbours(columns, values.shape[1])
    lines = values[low_y] * (1 - share_y)[:, None] + values[high_y] * share_y[:, None]
    between = lines[:, low_x] * (1 - share_x) + lines[:, high_x] * share_x
    return between.astype(np.float32, copy=False)


def _neighbours(places: FloatArray, n: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    inside = np.clip(places, 0, n - 1)
    low = np.floor(inside).astype(np.intp)
    return low, np.minimum(low + 1, n - 1), (inside - low).astype(np.float32)


def with_outlines(found: Detections, weights: NDArray[Any], prototypes: NDArray[Any], size: Size) -> Detections:
    """Give detections their outlines; those without any pixel go.

    Raises:
        ModelIncompatibleError: there are not as many weights as prototypes.
    """
    if weights.shape[1] != len(prototypes):
        raise ModelIncompatibleError(
            f"The network gives {len(prototypes)} prototypes of masks, and {weights.shape[1]} weights for each object."
        )
    shapes = prototype_outlines(prototypes, weights, found.boxes, size)
    index = np.array([i for i, shape in enumerate(shapes) if shape is not None], np.intp)
    kept, outlines = found.take(index), [shapes[i] for i in index]
    bounds = shapely.bounds(outlines).reshape(-1, 4) if outlines else np.empty((0, 4))
    return make_detections(bounds, kept.scores, kept.labels, None, outlines)


def _finite(found: Detections) -> tuple[Detections, Detections]:
    """Part what can have an outline from what is no number, which is for the run to count and drop."""
    is_finite = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
    broken = found.take(~is_finite)
    return found.take(is_finite), replace(broken, shapes=np.full(len(broken), shapely.Polygon(), np.object_))


@dataclass(frozen=True)
class PrototypeHead:
    """A dense table of candidates with weights, and prototypes. What remains after suppression gets its outline.

    Suppression stands inside the tile, by the boxes, as in the framework: masks of all candidates would be thousands.
    """

    layout: Layout
    settings: HeadSettings

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the two outputs that it reads."""
        return {"table": 3, "prototypes": 4}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        numbers = self.layout.numbers_first(outputs["table"])[:n]
        return [self._decode(image, maps, size) for image, maps in zip(numbers, outputs["prototypes"])]

    def _decode(self, numbers: NDArray[Any], prototypes: NDArray[Any], size: Size) -> Detections:
        index, scores, labels = self.layout.chosen(numbers, self.settings.threshold)
        grid = find_grid(numbers.shape[1], *size)
        part = type(grid)(grid.anchors[index], grid.strides[index])
        boxes = to_xyxy(self.layout.centred(numbers[:, index], part, size), "cxcywh", "pixels", size)
        # The candidate's number travels as its anchor through suppression.
        carried = np.stack([index, index], axis=1).astype(np.float64)
        found, broken = _finite(make_detections(boxes, scores, labels, carried))
        kept = suppress_once(found, self.settings.max_overlap)
        chosen = kept.anchors[:, 0].astype(np.intp)
        weights = numbers[4 + self.layout.has_objectness + self.layout.n_classes :, chosen].T
        return concatenate([with_outlines(kept, weights, prototypes, size), broken])


@dataclass(frozen=True)
class PrototypeRowsHead:
    """Finished objects with weights (x0 y0 x1 y1, score, class, weights), and prototypes."""

    settings: HeadSettings
    units: str = "pixels"

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the two outputs that it reads."""
        return {"table": 3, "prototypes": 4}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        return [self._decode(rows, maps, size) for rows, maps in zip(outputs["table"][:n], outputs["prototypes"])]

    def _decode(self, rows: NDArray[Any], prototypes: NDArray[Any], size: Size) -> Detections:
        labels = np.rint(np.nan_to_num(rows[:, 5], nan=-1.0)).astype(np.int64)
        keep = above(rows[:, 4], self.settings.threshold) & (labels >= 0) & (labels < self.settings.n_classes)
        rows, labels = rows[keep], labels[keep]
        carried = np.repeat(np.arange(len(rows), dtype=np.float64)[:, None], 2, axis=1)
        boxes = to_xyxy(rows[:, :4], "xyxy", self.units, size)
        found, broken = _finite(make_detections(boxes, rows[:, 4], labels, carried))
        weights = rows[found.anchors[:, 0].astype(np.intp), 6:]
        return concatenate([with_outlines(found, weights, prototypes, size), broken])


def _dense(reading: Reading, settings: HeadSettings) -> PrototypeHead:
    return PrototypeHead(layout_of(reading, settings, n_more=-1), settings)


def _rows(reading: Reading, settings: HeadSettings) -> PrototypeRowsHead:
    return PrototypeRowsHead(settings, str(reading.options.get("box_units", "pixels")))


MAKERS = {"yolov8-seg": _dense, "yolov5-seg": _dense, "rows-seg": _rows}
