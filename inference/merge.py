"""Merging: from the detections of single tiles to the objects of the raster, each once.

Two kinds of detectors, two rules, one sweep:

- Dense heads give candidates before suppression, each owned by the tile that holds its anchor. Their union is what one
  pass over the whole raster would have given, so greedy suppression over the union is exact.
- Other detectors suppress inside the network. Their detections are owned by centre, with a few pixels of tolerance, and
  only detections near a seam, found by different tiles, are suppressed against each other.

Greedy suppression keeps a detection unless a stronger kept one of its class overlaps it by more than the limit. The
order is total (score, then y, x, size, ...), so the outcome does not depend on the order of tiles.

The sweep takes tiles in rows from top to bottom. A detection's fate is settled once everything that could overlap it is
known; what is settled is handed out, so memory holds the rows near the sweep line only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import Detections, FloatArray, ObjectArray, concatenate
from .object_file import CLASS_TEXT

Indices = NDArray[np.intp]

POINT_TOLERANCE = 3.0
"""Pixels by which two tiles may disagree about the place of the same point."""


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
class Band:
    """Detections of one row of tiles, and the smallest y that a box of any later row reaches."""

    found: Found
    frontier: float


@dataclass(frozen=True)
class Rule:
    """When one detection suppresses another.

    Args:
        max_overlap: Highest intersection over union that two detections of a class may have.
        across_tiles_only: Detections of the same tile do not suppress each other (the network has seen to that).
    """

    max_overlap: float
    across_tiles_only: bool = False


def strongest_first(found: Found) -> Indices:
    """Give the total order of suppression: owned before tolerated, then by score, position, size and label."""
    d = found.detections
    x0, y0, x1, y1 = d.boxes.T
    return np.lexsort((found.tiles, d.labels, x1, y1, x0, y0, -d.scores.astype(np.float64), found.rank))


def suppress(bands: Iterable[Band], rule: Rule) -> Iterator[Band]:
    """Suppress duplicates over all bands, from top to bottom.

    Args:
        bands: The rows of tiles in order.
        rule: What counts as a duplicate.

    Yields:
        Bands of settled detections, with the frontier of what is still to come. Their union equals greedy suppression
        over everything at once.
    """
    live = join([])
    for band in bands:
        passed = band.found.take(~band.found.is_open)
        live = join([live, band.found.take(band.found.is_open)])
        is_kept, is_settled = _settle(live, band.frontier, rule)
        settled = live.take(is_kept & is_settled)
        live = live.take(~is_settled)
        yield Band(join([passed, settled]), _lowest_top(live, band.frontier))


def _lowest_top(live: Found, frontier: float) -> float:
    tops = live.detections.boxes[:, 1]
    return min(frontier, float(tops.min())) if len(tops) else frontier


def _settle(live: Found, frontier: float, rule: Rule) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Decide what can be decided.

    A kept detection ends above the frontier, so no later one overlaps it: it need not be remembered.

    Returns:
        (N,) is_kept and (N,) is_settled for the live detections. A detection that a later row could still overlap is
        not settled, and neither is one whose fate hangs on such a detection.
    """
    n = len(live)
    if n == 0:
        return np.zeros(0, np.bool_), np.zeros(0, np.bool_)
    order = np.empty(n, np.intp)
    order[strongest_first(live)] = np.arange(n)
    weaker, stronger = _rivals(live, order, rule)
    state = np.full(n, _UNKNOWN)
    boxes = live.detections.boxes
    # Boxes that merely touch have nothing in common; points are compared by their distance.
    may_grow = np.where(_are_points(boxes), boxes[:, 3] + POINT_TOLERANCE >= frontier, boxes[:, 3] > frontier)
    _propagate(state, weaker, stronger, may_grow)
    return state == _KEPT, state != _UNKNOWN


_UNKNOWN, _KEPT, _DROPPED = np.int8(0), np.int8(1), np.int8(2)


def _propagate(state: NDArray[np.int8], weaker: Indices, stronger: Indices, may_grow: NDArray[np.bool_]) -> None:
    """Settle in rounds: keep what has no undecided stronger rival, drop what a kept one overlaps, repeat."""
    n = len(state)
    while True:
        blocked = may_grow.copy()
        undecided = state[stronger] == _UNKNOWN
        blocked[weaker[undecided]] = True
        fresh = (state == _UNKNOWN) & ~blocked
        if not fresh.any():
            return
        state[fresh] = _KEPT
        hit = np.zeros(n, np.bool_)
        hit[weaker[fresh[stronger]]] = True
        state[hit & (state == _UNKNOWN)] = _DROPPED


def _rivals(live: Found, order: Indices, rule: Rule) -> tuple[Indices, Indices]:
    """Give all pairs (weaker, stronger) of live detections that the rule calls duplicates."""
    a, b = _touching(live.detections.boxes)
    first = order[a] < order[b]
    weaker, stronger = b[first], a[first]
    is_rival = _is_duplicate(live, weaker, stronger, rule)
    return weaker[is_rival], stronger[is_rival]


def _touching(boxes: FloatArray) -> tuple[Indices, Indices]:
    """Give all pairs of indices whose boxes have points in common, in both orders."""
    around = np.where(_are_points(boxes)[:, None], POINT_TOLERANCE / 2, 0.0) * np.array([-1, -1, 1, 1])
    rectangles = shapely.box(*(boxes + around).T)
    pairs = shapely.STRtree(rectangles).query(rectangles, predicate=None)
    return pairs[0], pairs[1]


def _are_points(boxes: FloatArray) -> NDArray[np.bool_]:
    are_points: NDArray[np.bool_] = (boxes[:, 2:] == boxes[:, :2]).all(axis=1)
    return are_points


def _is_duplicate(found: Found, i: Indices, j: Indices, rule: Rule) -> NDArray[np.bool_]:
    detections = found.detections
    may_be: NDArray[np.bool_] = detections.labels[i] == detections.labels[j]
    if detections.attributes is not None:
        texts = np.array([str(item.get(CLASS_TEXT)) for item in detections.attributes])
        may_be &= texts[i] == texts[j]
    if rule.across_tiles_only:
        may_be &= found.tiles[i] != found.tiles[j]
    if detections.shapes is None:
        return may_be & (overlap_ratio(detections.boxes[i], detections.boxes[j]) > rule.max_overlap)
    chosen = np.flatnonzero(may_be)
    first, second = detections.shapes[i[chosen]], detections.shapes[j[chosen]]
    is_same = shape_overlap_ratio(first, second) > rule.max_overlap
    if rule.across_tiles_only:
        # What one tile marked with a point another may have marked a little beside it.
        both = (shapely.get_dimensions(first) == 0) & (shapely.get_dimensions(second) == 0)
        is_same |= both & (shapely.distance(first, second) <= POINT_TOLERANCE)
    may_be[chosen] = is_same
    return may_be


def overlap_ratio(boxes: FloatArray, others: FloatArray) -> FloatArray:
    """Give the intersection over union of boxes, pair by pair; 0 for two empty boxes.

    Shape:
        boxes (N, 4), others (N, 4); gives (N,).
    """
    low = np.maximum(boxes[:, :2], others[:, :2])
    high = np.minimum(boxes[:, 2:], others[:, 2:])
    common = np.clip(high - low, 0, None).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = areas - common
    ratio: FloatArray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return ratio


def shape_overlap_ratio(shapes: ObjectArray, others: ObjectArray) -> FloatArray:
    """Give the intersection over union of shapes, pair by pair; 0 where there is no area, as with points and lines.

    Shape:
        shapes (N,), others (N,), valid geometries; gives (N,).
    """
    common = shapely.area(shapely.intersection(shapes, others))
    union = shapely.area(shapes) + shapely.area(others) - common
    ratio: FloatArray = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return ratio


def suppress_once(detections: Detections, max_overlap: float) -> Detections:
    """Suppress duplicates within one set of detections, strongest first."""
    n = len(detections)
    found = Found(detections, np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, np.bool_))
    (band,) = suppress([Band(found, np.inf)], Rule(max_overlap))
    kept = band.found
    return kept.detections.take(strongest_first(kept))
