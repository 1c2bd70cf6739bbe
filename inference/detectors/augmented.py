"""Test-time augmentation: look at a tile in several orientations and sizes, and fuse what is found.

Source:
    Fusion: Solovyev, Wang, Gabruseva, "Weighted boxes fusion", Image and Vision Computing 107 (2021), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ..detections import (
    Detections,
    FloatArray,
    ObjectArray,
    concatenate,
    make_detections,
    no_detections,
    of_dimension,
    shapes_of,
)
from ..errors import JobError
from ..merge import overlap_ratio, suppress_once
from ..preprocess import resize_cubic
from ..tiling import VIEW_EDGE
from .protocol import Detector, Traits, close_detector

_MOST_SCALE = 4.0


@dataclass(frozen=True)
class Orientation:
    """A turn by `quarters` times 90 degrees, after a left-right flip where `is_flipped`."""

    quarters: int
    is_flipped: bool

    def apply(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Turn a batch (N, C, S, S)."""
        flipped = batch[..., ::-1] if self.is_flipped else batch
        return np.ascontiguousarray(np.rot90(flipped, self.quarters, axes=(2, 3)))

    def undo(self, found: Detections, size: int) -> Detections:
        """Take detections in the turned image of side `size` back to the original one."""
        first, last = self._points(found.boxes[:, :2], size), self._points(found.boxes[:, 2:], size)
        boxes = np.concatenate([np.minimum(first, last), np.maximum(first, last)], axis=1)
        shapes = found.shapes
        if shapes is not None:
            shapes = shapely.transform(shapes, lambda points: self._points(points, size))
        return make_detections(boxes, found.scores, found.labels, shapes=shapes)

    def _points(self, points: FloatArray, size: int) -> FloatArray:
        x, y = points.T
        for _ in range(self.quarters):
            x, y = size - y, x
        return np.stack([size - x if self.is_flipped else x, y], axis=1)


MAP_ORIENTATIONS = tuple(Orientation(quarters, flip) for flip in (False, True) for quarters in range(4))
"""Seen from above no direction is special: all eight."""

PICTURE_ORIENTATIONS = (Orientation(0, False), Orientation(0, True))
"""In an oblique picture up is up."""


def parse_scales(text: str) -> tuple[float, ...]:
    """Read the argument tta_scales, "0.9,1,1.1".

    Raises:
        JobError: not a list of factors.
    """
    try:
        scales = tuple(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError:
        scales = ()
    if not scales or not all(1 / _MOST_SCALE <= scale <= _MOST_SCALE for scale in scales):
        raise JobError(
            f"Model argument 'tta_scales' is '{text}'; expected factors from {1 / _MOST_SCALE:g} to {_MOST_SCALE:g} "
            "with commas between them.",
            hint="Write for example 0.9,1,1.1.",
            argument="tta_scales",
        )
    return scales


@dataclass(frozen=True)
class Augmentation:
    """How a tile is looked at, and how what is found becomes one.

    Args:
        orientations: Turns and flips.
        scales: Factors of size.
        threshold: Lowest fused score to keep.
        max_overlap: Boxes of a class that overlap by more than this are the same object.
        merge_policy: What remains of an object's outlines: "mean", "max" or "min".
    """

    orientations: Sequence[Orientation]
    threshold: float
    max_overlap: float
    scales: Sequence[float] = (1.0,)
    merge_policy: str = "mean"


class AugmentedDetector:
    """A detector seen through several views. It is no longer dense: fusion has settled the candidates."""

    def __init__(self, detector: Detector, how: Augmentation) -> None:
        """Wrap a detector."""
        self._detector, self._how = detector, how

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return replace(self._detector.traits, is_dense=False, receptive_field_radius=None)

    def close(self) -> None:
        """Let go of the detector."""
        close_detector(self._detector)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        size = batch.shape[-1]
        views = [
            [view.undo(found, size) for found in self._at_scale(view.apply(batch), scale)]
            for scale, view in product(self._how.scales, self._how.orientations)
        ]
        return [self._fused([view[i] for view in views]) for i in range(len(batch))]

    def _at_scale(self, batch: NDArray[Any], scale: float) -> list[Detections]:
        """Look at a batch in another size, through windows of the tile's own side; give it in the tile's pixels."""
        if scale == 1:
            found = self._detector.predict(batch)
            return [self._one_view(part) for part in found] if self._detector.traits.is_dense else found
        side = batch.shape[-1]
        resized = resize_cubic(batch, max(1, round(side * scale)))
        seen: list[list[Detections]] = [[] for _ in batch]
        for y, x in product(_origins(resized.shape[-1], side), repeat=2):
            window = _padded(resized[..., y : y + side, x : x + side], side)
            for parts, part in zip(seen, self._detector.predict(window)):
                parts.append(_uncut(part, x, y, side, resized.shape[-1]).shift(x, y))
        return [self._one_view(concatenate(parts)).scale(side / resized.shape[-1]) for parts in seen]

    def _one_view(self, found: Detections) -> Detections:
        is_finite = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
        settled = suppress_once(found.take(is_finite), self._how.max_overlap)
        # What is no number passes through, for the run to count and drop.
        return concatenate([settled, found.take(~is_finite)])

    def _fused(self, found: list[Detections]) -> Detections:
        is_finite = [np.isfinite(part.boxes).all(axis=1) & np.isfinite(part.scores) for part in found]
        views = [part.take(mask) for part, mask in zip(found, is_finite)]
        fused = fuse(views, self._how)
        if self._detector.traits.is_oriented and fused.shapes is not None:
            # What several rectangles cover in common is none any more.
            fused = replace(fused, shapes=shapely.oriented_envelope(fused.shapes))
        return concatenate([fused, *(part.take(~mask) for part, mask in zip(found, is_finite))])


def _origins(length: int, side: int) -> list[int]:
    """Give where windows of `side` start that cover `length` and share half of themselves with each other."""
    if length <= side:
        return [0]
    n = -(-(length - side) // max(1, side // 2)) + 1
    return [round(index * (length - side) / (n - 1)) for index in range(n)]


def _padded(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    short = (side - pixels.shape[-2], side - pixels.shape[-1])
    return np.pad(pixels, ((0, 0), (0, 0), (0, short[0]), (0, short[1])))


def _uncut(found: Detections, x: int, y: int, side: int, length: int) -> Detections:
    """Drop what a window's edge cuts where the image goes on: another window sees it whole."""
    x0, y0, x1, y1 = found.boxes.T
    is_cut = ((x0 <= VIEW_EDGE) & (x > 0)) | ((y0 <= VIEW_EDGE) & (y > 0))
    is_cut |= ((x1 >= side - VIEW_EDGE) & (x + side < length)) | ((y1 >= side - VIEW_EDGE) & (y + side < length))
    return found.take(~is_cut)


def fuse(views: Sequence[Detections], how: Augmentation) -> Detections:
    """Fuse the detections of several views of one image with weighted boxes fusion.

    Args:
        views: One set for each view, in the same pixels.
        how: Limits, and what becomes of outlines.

    Returns:
        Fused boxes: score-weighted means; scores: the sum over a cluster divided by the number of views. An object with
        an outline has the outline's box.
    """
    everything = concatenate(views)
    order = np.lexsort((*everything.boxes.T, everything.labels, -everything.scores.astype(np.float64)))
    clusters: list[_Cluster] = []
    for index in order:
        _join_cluster(clusters, everything, int(index), how.max_overlap)
    clusters = [cluster for cluster in clusters if min(cluster.weight / len(views), 1.0) > how.threshold]
    if not clusters:
        return no_detections()
    boxes = np.array([cluster.box for cluster in clusters])
    scores = np.array([min(cluster.weight / len(views), 1.0) for cluster in clusters])
    labels = np.array([cluster.label for cluster in clusters])
    if everything.shapes is None:
        return make_detections(boxes, scores, labels)
    outlines = shapes_of(everything)
    shapes = [merged_outline(outlines[cluster.members], how.merge_policy) for cluster in clusters]
    keep = np.array([not shape.is_empty for shape in shapes])
    found = make_detections(boxes, scores, labels, shapes=shapes).take(keep)
    return make_detections(shapely.bounds(found.shapes), found.scores, found.labels, shapes=found.shapes)


def merged_outline(outlines: ObjectArray, policy: str) -> shapely.Geometry:
    """Give one outline for several of one object.

    Args:
        outlines: (K,) valid polygons or multipolygons.
        policy: "max": what any covers; "min": what all cover; "mean": what at least half of them cover.
    """
    if policy == "max" or len(outlines) == 1:
        return of_dimension(shapely.union_all(outlines), 2)
    if policy == "min":
        return of_dimension(shapely.intersection_all(outlines), 2)
    # Layer k is what at least k + 1 outlines cover.
    layers: list[shapely.Geometry] = []
    for outline in outlines:
        below = outline
        for k, layer in enumerate(layers):
            common = shapely.intersection(layer, below)
            layers[k] = shapely.union(layer, below)
            below = common
        layers.append(below)
    return of_dimension(layers[(len(outlines) + 1) // 2 - 1], 2)


@dataclass
class _Cluster:
    box: FloatArray
    weight: float
    label: int
    members: list[int] = field(default_factory=list)


def _join_cluster(clusters: list[_Cluster], everything: Detections, index: int, max_overlap: float) -> None:
    box, score, label = everything.boxes[index], float(everything.scores[index]), int(everything.labels[index])
    same = [cluster for cluster in clusters if cluster.label == label]
    if same:
        overlaps = overlap_ratio(np.stack([cluster.box for cluster in same]), np.broadcast_to(box, (len(same), 4)))
        best = int(overlaps.argmax())
        if overlaps[best] > max_overlap:
            cluster = same[best]
            cluster.box = (cluster.box * cluster.weight + box * score) / (cluster.weight + score)
            cluster.weight += score
            cluster.members.append(index)
            return
    clusters.append(_Cluster(box.copy(), score, label, [index]))
