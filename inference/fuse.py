"""Fusion: from a detection and those that it suppresses to one object.

`nmm` (non-maximum merging) gives what any of them covers: the box around all boxes, the union of all outlines.

`wbf` (weighted boxes fusion) gives the mean of the boxes, each weighted with its score. Outlines and rotated boxes have
no mean that is one of them, so there the strongest stays as it is.

Score, class, attributes and tile are those of the strongest.

Source:
    Solovyev, Wang, Gabruseva, "Weighted boxes fusion", Image and Vision Computing 107 (2021), section 3; clusters here
    are those of greedy suppression, and a score is not lowered for how few agree, since nobody knows how many could.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely

from .detections import Detections, FloatArray, ObjectArray, of_dimension
from .overlap import Indices


def fuse(detections: Detections, head: Indices, method: str) -> Detections:
    """Give one detection for each cluster.

    Args:
        detections: All members, strongest first.
        head: (N,), the place of the strongest of each one's cluster; its own for that one.
        method: "nmm" or "wbf".
    """
    heads, cluster = np.unique(head, return_inverse=True)
    result = detections.take(heads)
    shapes = detections.shapes
    if shapes is None:
        boxes = _around(detections, cluster, len(heads)) if method == "nmm" else _mean(detections, cluster, heads)
        return replace(result, boxes=boxes)
    return _united(shapes, cluster, result, heads) if method == "nmm" else result


def _around(detections: Detections, cluster: Indices, n: int) -> FloatArray:
    low, high = np.full((n, 2), np.inf), np.full((n, 2), -np.inf)
    np.minimum.at(low, cluster, detections.boxes[:, :2])
    np.maximum.at(high, cluster, detections.boxes[:, 2:])
    return np.concatenate([low, high], axis=1)


def _mean(detections: Detections, cluster: Indices, heads: Indices) -> FloatArray:
    weights = detections.scores.astype(np.float64)
    total = np.bincount(cluster, weights, len(heads))
    # Measured from the strongest, so that a box alone, or among equals, does not move by a rounding.
    origin = detections.boxes[heads]
    moves = (detections.boxes - origin[cluster]) * weights[:, None]
    mean = np.stack([np.bincount(cluster, move, len(heads)) for move in moves.T], axis=1)
    moved: FloatArray = origin + np.divide(mean, total[:, None], out=np.zeros(mean.shape), where=total[:, None] > 0)
    return moved


def _united(members: ObjectArray, cluster: Indices, result: Detections, heads: Indices) -> Detections:
    shapes, sizes = members[heads], np.bincount(cluster)
    order = np.argsort(cluster, kind="stable")
    ends = np.cumsum(sizes)
    for k in np.flatnonzero(sizes > 1):
        shapes[k] = of_dimension(shapely.union_all(members[order[ends[k] - sizes[k] : ends[k]]]), 2)
    boxes = np.where((sizes > 1)[:, None], shapely.bounds(shapes), result.boxes)
    return replace(result, shapes=shapes, boxes=boxes)
