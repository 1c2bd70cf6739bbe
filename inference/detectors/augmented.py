"""Test-time augmentation: look at a tile in several orientations and fuse what is found.

Source:
    Fusion: Solovyev, Wang, Gabruseva, "Weighted boxes fusion", Image and Vision Computing 107 (2021), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..detections import Detections, FloatArray, concatenate, make_detections, no_detections
from ..merge import overlap_ratio, suppress_once
from .protocol import Detector, Traits


@dataclass(frozen=True)
class Orientation:
    """A turn by `quarters` times 90 degrees, after a left-right flip where `is_flipped`."""

    quarters: int
    is_flipped: bool

    def apply(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Turn a batch (N, C, S, S)."""
        flipped = batch[..., ::-1] if self.is_flipped else batch
        return np.ascontiguousarray(np.rot90(flipped, self.quarters, axes=(2, 3)))

    def undo(self, boxes: FloatArray, size: int) -> FloatArray:
        """Take boxes (N, 4) of the turned image of side `size` back to the original one."""
        x0, y0, x1, y1 = boxes.T
        for _ in range(self.quarters):
            x0, y0, x1, y1 = size - y1, x0, size - y0, x1
        if self.is_flipped:
            x0, x1 = size - x1, size - x0
        return np.stack([x0, y0, x1, y1], axis=1)


MAP_ORIENTATIONS = tuple(Orientation(quarters, flip) for flip in (False, True) for quarters in range(4))
"""Seen from above no direction is special: all eight."""

PICTURE_ORIENTATIONS = (Orientation(0, False), Orientation(0, True))
"""In an oblique picture up is up."""


class AugmentedDetector:
    """A detector seen through several orientations. It is no longer dense: fusion has settled the candidates."""

    def __init__(
        self, detector: Detector, orientations: Sequence[Orientation], threshold: float, max_overlap: float
    ) -> None:
        """Wrap a detector; `max_overlap` is the overlap from which boxes count as the same object."""
        self._detector, self._orientations = detector, orientations
        self._threshold, self._max_overlap = threshold, max_overlap

    @property
    def traits(self) -> Traits:
        """Describe the network."""
        return replace(self._detector.traits, is_dense=False, receptive_field_radius=None)

    def predict(self, batch: NDArray[Any]) -> list[Detections]:
        """Find objects, see `Detector.predict`."""
        size = batch.shape[-1]
        views = [self._detector.predict(view.apply(batch)) for view in self._orientations]
        return [self._fused([view[i] for view in views], size) for i in range(len(batch))]

    def _fused(self, found: list[Detections], size: int) -> Detections:
        is_finite = [np.isfinite(part.boxes).all(axis=1) & np.isfinite(part.scores) for part in found]
        views = [
            self._one_view(part.take(mask), view, size)
            for part, mask, view in zip(found, is_finite, self._orientations)
        ]
        # What is no number passes through, for the run to count and drop.
        broken = [part.take(~mask) for part, mask in zip(found, is_finite)]
        return concatenate([fuse(views, self._max_overlap, self._threshold), *broken])

    def _one_view(self, found: Detections, view: Orientation, size: int) -> Detections:
        single = suppress_once(found, self._max_overlap) if self._detector.traits.is_dense else found
        return make_detections(view.undo(single.boxes, size), single.scores, single.labels)


def fuse(views: Sequence[Detections], max_overlap: float, threshold: float) -> Detections:
    """Fuse the detections of several views of one image with weighted boxes fusion.

    Args:
        views: One set for each view, in the same pixels.
        max_overlap: Boxes of a class that overlap a fused box by more than this belong to it.
        threshold: Lowest fused score to keep.

    Returns:
        Fused boxes: score-weighted means; scores: the sum over a cluster divided by the number of views.
    """
    everything = concatenate(views)
    order = np.lexsort((*everything.boxes.T, everything.labels, -everything.scores.astype(np.float64)))
    clusters: list[_Cluster] = []
    for index in order:
        _join_cluster(clusters, everything.boxes[index], float(everything.scores[index]),
                      int(everything.labels[index]), max_overlap)  # fmt: skip
    if not clusters:
        return no_detections()
    scores = np.array([min(c.weight / len(views), 1.0) for c in clusters])
    fused = make_detections(np.array([c.box for c in clusters]), scores, np.array([c.label for c in clusters]))
    return fused.take(fused.scores > threshold)


@dataclass
class _Cluster:
    box: FloatArray
    weight: float
    label: int


def _join_cluster(clusters: list[_Cluster], box: FloatArray, score: float, label: int, max_overlap: float) -> None:
    same = [cluster for cluster in clusters if cluster.label == label]
    if same:
        overlaps = overlap_ratio(np.stack([cluster.box for cluster in same]), np.broadcast_to(box, (len(same), 4)))
        best = int(overlaps.argmax())
        if overlaps[best] > max_overlap:
            cluster = same[best]
            cluster.box = (cluster.box * cluster.weight + box * score) / (cluster.weight + score)
            cluster.weight += score
            return
    clusters.append(_Cluster(box.copy(), score, label))
