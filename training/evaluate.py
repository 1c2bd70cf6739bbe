"""Detection measures: precision, recall, F1 and average precision with greedy one-to-one matching."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from dataset import Plot
from network import ALIGNMENT

THRESHOLDS = np.arange(0.08, 0.6, 0.02).round(2).tolist()
OVERLAPS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
F1_TOLERANCE = 0.01
PRIOR = 0.01
"""Pull of the calibration towards leaving scores as they are, for a network that has hardly learned."""

Detector = Callable[[np.ndarray], np.ndarray]
"""Takes uint8 (1, 3, H, W); returns float32 (1, 5, A): cx, cy, w, h in pixels and the score."""


@dataclass(frozen=True)
class Detections:
    """Boxes of one image, best first: boxes float32 (n, 4) corners in pixels, scores float32 (n,)."""

    boxes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Measures:
    """Figures over one or more images; the first three hold at the score threshold, the fourth needs none."""

    precision: float
    recall: float
    f1: float
    average_precision: float


def detect(detector: Detector, image: np.ndarray, lowest_score: float = 0.02) -> Detections:
    """Run a detector on a whole image; the image is padded with zeros to the network's alignment.

    Args:
        detector: The network.
        image: uint8, (3, H, W).
        lowest_score: Detections below are dropped.

    Returns:
        The detections, clipped to the image, without suppression of overlapping ones.
    """
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (0, -height % ALIGNMENT), (0, -width % ALIGNMENT)))
    rows = detector(padded[None])[0].T
    rows = rows[rows[:, 4] >= lowest_score]
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    half = rows[:, 2:4] / 2
    boxes = np.concatenate((rows[:, :2] - half, rows[:, :2] + half), 1)
    return Detections(boxes.clip(0, [width, height, width, height]).astype(np.float32), rows[:, 4])


def suppress(detections: Detections, threshold: float, overlap: float) -> Detections:
    """Drop low scores, then every box that overlaps a better one too much.

    Args:
        detections: Best first.
        threshold: Lowest score kept.
        overlap: Highest intersection over union allowed.

    Returns:
        The detections left, best first.
    """
    keep = detections.scores >= threshold
    boxes, scores = detections.boxes[keep], detections.scores[keep]
    clashes, chosen = iou_matrix(boxes, boxes) > overlap, np.ones(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if chosen[index]:
            chosen[index + 1 :] &= ~clashes[index, index + 1 :]
    return Detections(boxes[chosen], scores[chosen])


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair.

    Args:
        first: (n, 4), corner boxes.
        second: (m, 4), corner boxes.

    Returns:
        (n, m).
    """
    sides = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    shared = sides.clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clip(1e-9)


def match(boxes: np.ndarray, truth: np.ndarray, iou: float) -> np.ndarray:
    """Give each detection, best first, the free true box that it overlaps most.

    Args:
        boxes: (n, 4), best first.
        truth: (m, 4).
        iou: Lowest intersection over union of a match.

    Returns:
        int, (n,), index of the true box or -1.
    """
    table = iou_matrix(boxes, truth)
    matches = np.full(len(boxes), -1)
    for index in range(len(boxes) if len(truth) else 0):
        best = int(table[index].argmax())
        if table[index, best] >= iou:
            matches[index] = best
            table[:, best] = -1
    return matches


def judge(detections: Detections, plot: Plot, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Mark right and wrong detections; unmatched ones in ignored places count as neither.

    Args:
        detections: Best first.
        plot: The truth.
        iou: Lowest intersection over union of a match.

    Returns:
        float32 scores and bool hits, of the detections that count.
    """
    hits = match(detections.boxes, plot.boxes, iou) >= 0
    middle = ((detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2).astype(int)
    height, width = plot.ignore.shape
    ignored = plot.ignore[middle[:, 1].clip(0, height - 1), middle[:, 0].clip(0, width - 1)]
    counts = hits | ~ignored
    return detections.scores[counts], hits[counts]


def average_precision(scores: np.ndarray, hits: np.ndarray, truths: int) -> float:
    """Area under the precision-recall curve, precision made monotonic.

    Args:
        scores: (n,).
        hits: bool, (n,).
        truths: Number of true boxes.

    Returns:
        0 to 1.
    """
    right = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate(([0.0], right / max(truths, 1)))
    return float((np.diff(recall) * envelope).sum())


def measure(found: list[Detections], plots: list[Plot], threshold: float, iou: float) -> Measures:
    """Measure detections over several images together.

    Args:
        found: One entry a plot, after suppression, low scores included.
        plots: The truth.
        threshold: Score for precision, recall and F1.
        iou: Lowest intersection over union of a match.

    Returns:
        The figures.
    """
    judged = [judge(detections, plot, iou) for detections, plot in zip(found, plots, strict=True)]
    scores = np.concatenate([pair[0] for pair in judged])
    hits = np.concatenate([pair[1] for pair in judged])
    truths = sum(len(plot.boxes) for plot in plots)
    shown = scores >= threshold
    right = int(hits[shown].sum())
    precision, recall = right / max(int(shown.sum()), 1), right / max(truths, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return Measures(precision, recall, f1, average_precision(scores, hits, truths))


def calibrate(raw: list[Detections], plots: list[Plot], overlap: float) -> tuple[float, float]:
    """Fit scores to the share of detections that are right at IoU 0.4 (Platt scaling, by Newton's method).

    Args:
        raw: One entry a plot, before suppression.
        plots: The truth.
        overlap: Highest overlap between detections.

    Returns:
        Scale (above 0) and offset of the logit.
    """
    judged = [judge(suppress(detections, 0.0, overlap), plot, 0.4) for detections, plot in zip(raw, plots, strict=True)]
    scores = np.concatenate([pair[0] for pair in judged]).astype(float).clip(1e-6, 1 - 1e-6)
    hits = np.concatenate([pair[1] for pair in judged]).astype(float)
    inputs = np.stack((np.log(scores / (1 - scores)), np.ones_like(scores)), 1)
    start = np.array([1.0, 0.0])
    weights = start.copy()
    for _ in range(40):
        chance = 1 / (1 + np.exp(-inputs @ weights))
        curvature = inputs.T @ (inputs * (chance * (1 - chance))[:, None]) + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (hits - chance) - PRIOR * (weights - start))
        weights += step / max(1.0, float(np.abs(step).max()))
    return max(float(weights[0]), 0.05), float(weights[1])


def apply_calibration(score: float, scale: float, offset: float) -> float:
    """Map a raw score to a calibrated one.

    Args:
        score: Raw score, above 0 and below 1.
        scale: Factor of the logit.
        offset: Added to the logit.

    Returns:
        The calibrated score.
    """
    return 1 / (1 + math.exp(-(scale * math.log(score / (1 - score)) + offset)))


def best_settings(raw: list[Detections], plots: list[Plot]) -> tuple[float, float]:
    """Choose score threshold and allowed overlap by F1 at IoU 0.4.

    F1 hardly changes over a wide range, and where in it the maximum falls is chance. Therefore the medians of all
    settings within :data:`F1_TOLERANCE` of it are taken.

    Args:
        raw: One entry a plot, before suppression.
        plots: The truth.

    Returns:
        Threshold and overlap.
    """
    tried = []
    for overlap in OVERLAPS:
        found = [suppress(detections, 0.0, overlap) for detections in raw]
        tried += [(measure(found, plots, threshold, 0.4).f1, threshold, overlap) for threshold in THRESHOLDS]
    best = max(tried)[0]
    good = np.array([setting[1:] for setting in tried if setting[0] >= best - F1_TOLERANCE])
    threshold, overlap = np.quantile(good, 0.5, axis=0, method="nearest").tolist()
    return threshold, overlap
