"""Rivals: pairs of detections of which one object is meant, or so the rule says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from .candidates import Index, Mask, Pairs, make_index
from .detections import Detections, FloatArray, concatenate
from .object_file import CLASS_TEXT
from .overlap import Extents, Indices, extents_of

POINT_TOLERANCE = 3.0
"""Pixels by which two tiles may disagree about the place of the same point."""
_PAIRS = 1 << 19
"""How many pairs are looked at before what the strongest suppress is put aside."""
_FEW = 256


@dataclass(frozen=True, eq=False)
class Found:
    """Detections on their way through the sweep.

    Shape:
        detections of length N in raster pixels; tiles (N,) int64, the tile that found each; rank (N,) int8, 0 for a
        detection of the tile that owns it and 1 for one that only the tolerance let in; is_open (N,) bool, whether the
        detection takes part in suppression at all.
    """

    detections: Detections
    tiles: NDArray[np.int64]
    rank: NDArray[np.int8]
    is_open: NDArray[np.bool_]

    def __len__(self) -> int:
        """Give the number of detections."""
        return len(self.detections)

    def take(self, index: NDArray[np.bool_] | Indices) -> Found:
        """Give the part that an index array or mask selects."""
        return Found(self.detections.take(index), self.tiles[index], self.rank[index], self.is_open[index])


def join(parts: list[Found]) -> Found:
    """Join in the order given."""
    return Found(
        concatenate([part.detections for part in parts]),
        np.concatenate([part.tiles for part in parts]) if parts else np.empty(0, np.int64),
        np.concatenate([part.rank for part in parts]) if parts else np.empty(0, np.int8),
        np.concatenate([part.is_open for part in parts]) if parts else np.empty(0, np.bool_),
    )


@dataclass(frozen=True)
class Rule:
    """What counts as the same object, and what becomes of it.

    Args:
        max_overlap: Highest overlap that two detections of a class may have.
        across_tiles_only: Detections of the same tile do not suppress each other (the network has seen to that).
        metric: How overlap is measured, "iou" or "ios" (overlap.py).
        class_agnostic: Detections of different classes are rivals, too.
        method: "nms": the weaker ones go; "nmm": they grow into the strongest; "wbf": they move its box; "soft-nms":
            they lose score.
        threshold: What a score must be above, after what soft-nms takes.
    """

    max_overlap: float
    across_tiles_only: bool = False
    metric: str = "iou"
    class_agnostic: bool = False
    method: str = "nms"
    threshold: float = 0.0

    @property
    def is_usual(self) -> bool:
        """Tell whether it is what networks do that suppress inside themselves."""
        return (self.metric, self.class_agnostic, self.method) == ("iou", False, "nms")


def rule_of(arguments: Mapping[str, Any]) -> Rule:
    """Give the rule that the model arguments ask for."""
    return Rule(
        float(arguments["nms_overlap"]),
        metric=str(arguments["merge_metric"]),
        class_agnostic=bool(arguments["class_agnostic"]),
        method=str(arguments["merge_method"]),
        threshold=float(arguments["threshold"]),
    )


def strongest_first(found: Found) -> Indices:
    """Give the total order of suppression: owned before tolerated, then by score, position, size, label, tile, shape.

    What is equal in all of these is the same but for its attributes; it stays in the order of arrival.
    """
    d = found.detections
    weakness = -d.scores
    order = np.lexsort((weakness, found.rank)) if found.rank.any() else np.argsort(weakness, kind="stable")
    tied = _tied(order, [found.rank, weakness])
    if not len(tied):
        return order
    columns = [found.rank, weakness, *d.boxes[:, [1, 0, 3, 2]].T, d.labels, found.tiles]
    part = order[tied]
    order[tied] = part[np.lexsort([column[part] for column in reversed(columns)])]
    tied = _tied(order, columns)
    if d.shapes is not None and len(tied):
        part = order[tied]
        keys = zip(*(column[part].tolist() for column in columns), shapely.to_wkb(d.shapes[part]).tolist())
        numbered = sorted((key, number) for number, key in enumerate(keys))
        order[tied] = part[[number for _, number in numbered]]
    return order


def _tied(order: Indices, columns: list[NDArray[np.generic]]) -> Indices:
    """Give the places in an order whose entries equal one of their neighbours in all columns."""
    is_equal = np.ones(max(0, len(order) - 1), np.bool_)
    for column in columns:
        is_equal &= column[order[1:]] == column[order[:-1]]
    return np.flatnonzero(np.append(False, is_equal) | np.append(is_equal, False)) if len(order) else order


@dataclass(frozen=True, eq=False)
class Rivals:
    """Detections in the order of their strength, so that of a pair the smaller number is the stronger one.

    Attributes:
        found: The detections (N).
        rule: What counts as the same object.
        extents: What they are measured with.
        classes: (N,) int64; only equal ones can be rivals.
        index: Which of them meet at all.
    """

    found: Found
    rule: Rule
    extents: Extents
    classes: NDArray[np.int64]
    index: Index

    def __len__(self) -> int:
        """Give the number of detections."""
        return len(self.found)

    def in_question(self, may_grow: Mask) -> Indices:
        """Give those whose fate may be told, and what it may hang on, strongest first.

        Args:
            may_grow: (N,), whether rivals of it may still come, so that nothing keeps it for certain.
        """
        everything = np.arange(len(self))
        if may_grow.all() or len(self.strongest(everything)) == len(self):
            return everything[: 0 if may_grow.all() else None]
        is_asked = ~may_grow
        is_asked[self.reached(everything[~may_grow], everything[may_grow])] = True
        return everything[is_asked]

    def strongest(self, waiting: Indices) -> Indices:
        """Give the first of those, strongest first: as many as can be compared with each other at once.

        Where very many lie on one spot, the first few suppress most of the rest before those are compared.
        """
        n = len(waiting)
        while n > _FEW:
            share = _PAIRS / max(1, self.index.count(waiting[:n]))
            if share >= 1:
                break
            n = max(_FEW, int(n * min(0.25, share**0.5)))
        return waiting[:n]

    def within(self, members: Indices) -> tuple[Indices, Indices, FloatArray]:
        """Give all rivals among members: stronger, weaker, overlap; by the weaker one, then by the stronger one."""
        parts = [self._judged(np.minimum(i, j), np.maximum(i, j)) for i, j in self._meeting(self.index.within(members))]
        if not parts:
            return np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0)
        strong, weak, overlap = (np.concatenate(arrays) for arrays in zip(*parts))
        order = np.argsort(weak * len(self) + strong)
        return strong[order], weak[order], overlap[order]

    def between(self, members: Indices, others: Indices) -> Iterator[tuple[Indices, Indices, FloatArray]]:
        """Give all rivals of a member and an other: member, other, overlap; in portions."""
        if len(members) and len(others):
            for i, j in self._meeting(self.index.between(members, others)):
                yield self._judged(i, j)

    def reached(self, members: Indices, others: Indices) -> Indices:
        """Give those others that have a rival among members; most find one among the first."""
        is_reached = np.zeros(len(self), np.bool_)
        first, size = 0, _FEW
        while first < len(members) and len(others):
            for _, other, _ in self.between(members[first : first + size], others):
                is_reached[other] = True
            others = others[~is_reached[others]]
            first, size = first + size, size * 8
        return np.flatnonzero(is_reached)

    def _meeting(self, pairs: Iterator[Pairs]) -> Iterator[Pairs]:
        # Nothing overlaps by more than all of it.
        return iter(()) if self.rule.max_overlap >= 1 and not self.rule.across_tiles_only else pairs

    def _judged(self, i: Indices, j: Indices) -> tuple[Indices, Indices, FloatArray]:
        may_be = self.classes[i] == self.classes[j]
        if self.rule.across_tiles_only:
            may_be &= self.found.tiles[i] != self.found.tiles[j]
        if not may_be.all():
            i, j = i[may_be], j[may_be]
        overlap = self.extents.overlap(np.minimum(i, j), np.maximum(i, j), self.rule.metric, self.rule.max_overlap)
        is_rival = overlap > self.rule.max_overlap
        shapes = self.found.detections.shapes
        if self.rule.across_tiles_only and shapes is not None:
            # What one tile marked with a point another may have marked a little beside it.
            places = np.flatnonzero((shapely.get_dimensions(shapes[i]) == 0) & (shapely.get_dimensions(shapes[j]) == 0))
            is_rival[places] = shapely.distance(shapes[i[places]], shapes[j[places]]) <= POINT_TOLERANCE
        return i[is_rival], j[is_rival], overlap[is_rival]


def rivals_of(found: Found, rule: Rule) -> Rivals:
    """Make detections, strongest first, ready to be compared with each other."""
    boxes, classes = found.detections.boxes, _classes(found.detections, rule)
    # What rounding takes must not hide a pair.
    is_near = are_points(boxes) & rule.across_tiles_only
    reach = np.where(is_near, POINT_TOLERANCE / 2, 0.0) + 1e-9 * np.abs(boxes).max(initial=0)
    extents = extents_of(found.detections)
    index = make_index(boxes + reach[:, None] * np.array([-1, -1, 1, 1]), classes, is_near | (extents.areas > 0))
    return Rivals(found, rule, extents, classes, index)


def are_points(boxes: FloatArray) -> Mask:
    """Tell which boxes have neither width nor height."""
    are: NDArray[np.bool_] = (boxes[:, 2:] == boxes[:, :2]).all(axis=1)
    return are


def _classes(detections: Detections, rule: Rule) -> NDArray[np.int64]:
    if rule.class_agnostic:
        return np.zeros(len(detections), np.int64)
    if detections.attributes is None:
        return detections.labels.astype(np.int64)
    numbers: dict[tuple[int, str], int] = {}
    named = zip(detections.labels.tolist(), detections.attributes)
    keys = [(label, json.dumps(item.get(CLASS_TEXT))) for label, item in named]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)
