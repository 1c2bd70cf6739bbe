"""Detections: many boxes at once, as a struct of arrays.

Pixel-edge convention: pixel (column 3, row 5) covers x in [3, 4) and y in [5, 6); x runs right, y runs down. The
coordinate space (network pixels, raster pixels) is the one of the function that hands the detections out.

    anchor: the point that decides which tile owns the detection (tiling.py): the centre of the output cell that made
    the box where a dense head gives one, the centre of the box otherwise.
    shape: the object's outline, point or line, where the box is not all there is; the box is its bounds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
ObjectArray = NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Detections:
    """N detected objects.

    Shape:
        boxes (N, 4) float64, x0 y0 x1 y1 with x0 <= x1 and y0 <= y1; scores (N,) float32 in 0..1; labels (N,) int32,
        indices into the model definition's classes; anchors (N, 2) float64, x y; shapes (N,) shapely geometries in the
        same pixels, or None where the boxes are the objects; attributes (N,) dicts of JSON values, or None where the
        objects have none of their own.
    """

    boxes: FloatArray
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    anchors: FloatArray
    shapes: ObjectArray | None = None
    attributes: ObjectArray | None = None

    def __post_init__(self) -> None:
        """Check the shapes once, where the arrays come together."""
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.anchors.shape != (n, 2):
            raise ValueError(f"boxes {self.boxes.shape} and anchors {self.anchors.shape} do not belong together")
        if self.scores.shape != (n,) or self.labels.shape != (n,):
            raise ValueError(f"{n} boxes, but scores {self.scores.shape} and labels {self.labels.shape}")
        for extra in (self.shapes, self.attributes):
            if extra is not None and extra.shape != (n,):
                raise ValueError(f"{n} boxes, but {extra.shape} shapes or attributes")

    def __len__(self) -> int:
        """Give the number of detections."""
        return len(self.boxes)

    def take(self, index: NDArray[Any]) -> Detections:
        """Give the detections that an index array or a boolean mask selects."""
        return Detections(
            self.boxes[index],
            self.scores[index],
            self.labels[index],
            self.anchors[index],
            None if self.shapes is None else self.shapes[index],
            None if self.attributes is None else self.attributes[index],
        )

    def shift(self, x: float, y: float) -> Detections:
        """Give the detections moved by (x, y)."""
        offset = np.array([x, y], dtype=np.float64)
        return self._mapped(self.boxes + np.tile(offset, 2), self.anchors + offset, lambda points: points + offset)

    def scale(self, x: float, y: float | None = None) -> Detections:
        """Give the detections in pixels that are `x` times finer, and `y` times along the columns where that differs.

        Anything but boxes is bent by two different factors: a rotated rectangle does not stay one.
        """
        factors = np.array([x, x if y is None else y], dtype=np.float64)
        return self._mapped(self.boxes * np.tile(factors, 2), self.anchors * factors, lambda points: points * factors)

    def _mapped(self, boxes: FloatArray, anchors: FloatArray, points: Any) -> Detections:
        shapes = None if self.shapes is None else shapely.transform(self.shapes, points)
        return replace(self, boxes=boxes, anchors=anchors, shapes=shapes)


def make_detections(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    anchors: NDArray[Any] | None = None,
    shapes: Sequence[Any] | ObjectArray | None = None,
    attributes: Sequence[dict[str, Any]] | ObjectArray | None = None,
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
        None if shapes is None else _objects(shapes),
        None if attributes is None else _objects(attributes),
    )


def _objects(items: Sequence[Any] | ObjectArray) -> ObjectArray:
    """Give a one-dimensional array of objects; numpy would look into geometries and dicts by itself."""
    array = np.empty(len(items), np.object_)
    array[:] = list(items)
    return array


def no_detections() -> Detections:
    """Give the empty set."""
    return make_detections(np.empty((0, 4)), np.empty(0), np.empty(0))


def concatenate(parts: Sequence[Detections]) -> Detections:
    """Join detections in the order given; where some have shapes or attributes, all others get theirs."""
    if not parts:
        return no_detections()
    has_shapes = any(part.shapes is not None for part in parts)
    has_attributes = any(part.attributes is not None for part in parts)
    return Detections(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.anchors for part in parts]),
        np.concatenate([shapes_of(part) for part in parts]) if has_shapes else None,
        np.concatenate([_attributes_of(part) for part in parts]) if has_attributes else None,
    )


def shapes_of(detections: Detections) -> ObjectArray:
    """Give the shapes, of boxes their rectangles."""
    if detections.shapes is not None:
        return detections.shapes
    return _objects(list(shapely.box(*detections.boxes.T))) if len(detections) else np.empty(0, np.object_)


def _attributes_of(detections: Detections) -> ObjectArray:
    if detections.attributes is not None:
        return detections.attributes
    return _objects([{} for _ in range(len(detections))])


_HEADER = np.dtype([("count", "<i8"), ("has_shapes", "u1"), ("has_attributes", "u1")])
_RECORD = np.dtype([("box", "<f8", 4), ("anchor", "<f8", 2), ("score", "<f4"), ("label", "<i4")])


def to_bytes(detections: Detections) -> bytes:
    """Pack detections into the journal's form, losslessly.

    A header, little-endian records of 56 bytes, then the lengths and bytes of the shapes as WKB and of the attributes
    as JSON, where there are any.
    """
    header = np.zeros((), dtype=_HEADER)
    header["count"] = len(detections)
    header["has_shapes"], header["has_attributes"] = detections.shapes is not None, detections.attributes is not None
    records = np.empty(len(detections), dtype=_RECORD)
    records["box"], records["anchor"] = detections.boxes, detections.anchors
    records["score"], records["label"] = detections.scores, detections.labels
    parts = [header.tobytes(), records.tobytes()]
    if detections.shapes is not None:
        parts.append(_pack([bytes(wkb) for wkb in shapely.to_wkb(detections.shapes)]))
    if detections.attributes is not None:
        parts.append(_pack([json.dumps(item).encode() for item in detections.attributes]))
    return b"".join(parts)


def from_bytes(data: bytes) -> Detections:
    """Unpack what `to_bytes` packed.

    Raises:
        ValueError: the bytes are none of its.
    """
    header = np.frombuffer(data, _HEADER, 1)[0]
    n, place = int(header["count"]), _HEADER.itemsize
    records = np.frombuffer(data, _RECORD, n, place)
    place += records.nbytes
    shapes, attributes = None, None
    if header["has_shapes"]:
        blobs, place = _unpack(data, place, n)
        shapes = _objects(list(shapely.from_wkb(blobs)))
    if header["has_attributes"]:
        blobs, place = _unpack(data, place, n)
        attributes = [json.loads(blob) for blob in blobs]
    if place != len(data):
        raise ValueError(f"{len(data)} bytes where {place} were expected")
    return make_detections(records["box"], records["score"], records["label"], records["anchor"], shapes, attributes)


def _pack(blobs: list[bytes]) -> bytes:
    return np.array([len(blob) for blob in blobs], "<i8").tobytes() + b"".join(blobs)


def _unpack(data: bytes, place: int, n: int) -> tuple[list[bytes], int]:
    lengths = np.frombuffer(data, "<i8", n, place)
    ends = place + lengths.nbytes + np.cumsum(lengths)
    starts = ends - lengths
    blobs = [data[start:end] for start, end in zip(starts.tolist(), ends.tolist())]
    return blobs, int(ends[-1]) if n else place


def of_dimension(shape: shapely.Geometry, dimension: int) -> shapely.Geometry:
    """Give the parts of a shape that are points (0), lines (1) or areas (2), or an empty geometry.

    Where areas are cut or merely touch, lines and points are left over.
    """
    parts = [part for part in shapely.get_parts(shape) if shapely.get_dimensions(part) == dimension]
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)
