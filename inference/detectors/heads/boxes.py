"""Boxes and scores as graphs give them, brought to one form."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from ...detections import Detections, FloatArray, ObjectArray, make_detections


def to_xyxy(boxes: NDArray[Any], box_format: str, units: str, size: tuple[int, int]) -> FloatArray:
    """Give boxes as x0 y0 x1 y1 in network pixels.

    Shape:
        boxes (N, 4); gives (N, 4).

    Args:
        boxes: As the graph gives them.
        box_format: One of definition.BOX_FORMATS.
        units: "pixels", or "fractions" of the image's sides.
        size: Height and width of the image.
    """
    a, b, c, d = boxes.astype(np.float64).T
    corners = {
        "xyxy": (a, b, c, d),
        "yxyx": (b, a, d, c),
        "xywh": (a, b, a + c, b + d),
        "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    }[box_format]
    found: FloatArray = np.stack(corners, axis=1)
    return found * np.array([size[1], size[0], size[1], size[0]]) if units == "fractions" else found


def activated(scores: NDArray[Any], how: str) -> NDArray[Any]:
    """Turn a graph's scores into probabilities, along the last axis where that matters; see definition.SCORES."""
    if how == "sigmoid":
        return sigmoid(scores)
    if how == "softmax":
        raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=-1, keepdims=True))
    return scores


def sigmoid(values: NDArray[Any]) -> NDArray[Any]:
    """Give 1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(values))
    result: NDArray[Any] = np.where(values >= 0, 1 / (1 + e), e / (1 + e))
    return result


def without_background(scores: NDArray[Any], background: str) -> NDArray[Any]:
    """Leave the background's column out: "first", "last" or "none" of them is it."""
    return scores[..., 1:] if background == "first" else scores[..., :-1] if background == "last" else scores


def above(scores: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Tell which scores are above the threshold; what is no number stays, for the run to count and drop."""
    is_above: NDArray[np.bool_] = ~(scores <= threshold)
    return is_above


def rotated(rectangles: NDArray[Any]) -> ObjectArray:
    """Give polygons of four corners.

    Shape:
        rectangles (N, 5): cx, cy, width, height in pixels, and the angle from the x axis to the width, in radians,
        clockwise as seen (y runs down); gives (N,).
    """
    cx, cy, width, height, angle = rectangles.astype(np.float64).T
    across = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (width / 2)[:, None]
    down = np.stack([-np.sin(angle), np.cos(angle)], axis=1) * (height / 2)[:, None]
    centre = np.stack([cx, cy], axis=1)
    corners = [centre - across - down, centre + across - down, centre + across + down, centre - across + down]
    found = np.empty(len(rectangles), np.object_)
    found[:] = list(shapely.polygons(np.stack(corners, axis=1))) if len(rectangles) else []
    return found


def rotated_detections(
    rectangles: NDArray[Any], scores: NDArray[Any], labels: NDArray[Any], anchors: NDArray[Any] | None = None
) -> Detections:
    """Give detections that are rotated rectangles, see `rotated`; those that are no numbers get no rectangle."""
    is_finite = np.isfinite(rectangles).all(axis=1)
    shapes = rotated(np.where(is_finite[:, None], rectangles, 0.0))
    boxes = np.where(is_finite[:, None], shapely.bounds(shapes).reshape(-1, 4), np.nan)
    centres = np.asarray(rectangles[:, :2], np.float64) if anchors is None else anchors
    return make_detections(boxes, scores, labels, centres, shapes)
