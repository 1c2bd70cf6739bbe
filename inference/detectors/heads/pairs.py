"""Boxes in one output, scores in another: queries of transformers, candidates of SSDs, and finished objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...detections import Detections, FloatArray, make_detections
from ...errors import ModelIncompatibleError
from ...merge import suppress_once
from ...models.onnx_heads import Reading
from ...outlines import outline
from . import Head, HeadSettings, Outputs, Size
from .boxes import above, activated, to_xyxy, without_background
from .rows import labels_of
from .segmentation import sampled

_IN_MASK = 0.5  # of a pixel's probability
_DETS = 5  # columns of boxes that have their score with them


@dataclass(frozen=True)
class DetrHead:
    """Queries of a transformer: each one an object or none, so that nothing need be suppressed.

    With a sigmoid a query may be an object of several classes, as in the framework; with a softmax it has one class,
    or none.

    Source:
        the post-processing of Carion et al. (DETR, 2020) and Zhao et al. (RT-DETR, 2023).
    """

    settings: HeadSettings
    options: Mapping[str, Any]

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the outputs that it reads: boxes and scores, or both in one table."""
        return {"table": 3} if self.options.get("is_table") else {"boxes": 3, "logits": 3}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        if "table" in outputs:
            boxes, scores = outputs["table"][..., :4], outputs["table"][..., 4:]
        else:
            boxes, scores = outputs["boxes"], outputs["logits"]
        return [self._decode(box, score, size) for box, score in zip(boxes[:n], scores[:n])]

    def _decode(self, boxes: NDArray[Any], numbers: NDArray[Any], size: Size) -> Detections:
        scores = activated(numbers.astype(np.float32), str(self.options.get("scores", "sigmoid")))
        scores = without_background(scores, str(self.options.get("background", "none")))
        offset, n_queries = int(self.options.get("label_offset", 0)), len(scores)
        wanted = scores[:, offset : offset + self.settings.n_classes]
        if self.options.get("scores") == "softmax":
            queries, labels = np.arange(n_queries), wanted.argmax(axis=1)
        else:
            # As many of the best pairs of query and class as there are queries.
            best = np.argsort(-wanted, axis=None, kind="stable")[:n_queries]
            queries, labels = np.unravel_index(best, wanted.shape)
        chosen = wanted[queries, labels]
        keep = above(chosen, self.settings.threshold)
        units, box_format = self.options.get("box_units", "fractions"), self.options.get("box_format", "cxcywh")
        found = to_xyxy(boxes[queries[keep]], str(box_format), str(units), size)
        return make_detections(found, chosen[keep], labels[keep])


@dataclass(frozen=True)
class SsdHead:
    """Candidates of anchors that nobody tells of: suppressed inside the tile, class by class."""

    settings: HeadSettings
    options: Mapping[str, Any]

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the two outputs that it reads."""
        return {"boxes": 3, "scores": 3}

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        pairs = zip(outputs["boxes"][:n], outputs["scores"][:n])
        return [self._decode(boxes, scores, size) for boxes, scores in pairs]

    def _decode(self, boxes: NDArray[Any], numbers: NDArray[Any], size: Size) -> Detections:
        scores = activated(numbers, str(self.options.get("scores", "probabilities")))
        scores = without_background(scores, str(self.options.get("background", "none")))
        wanted = scores[:, : self.settings.n_classes]
        candidates, labels = np.nonzero(above(wanted, self.settings.threshold))
        units, box_format = self.options.get("box_units", "pixels"), self.options.get("box_format", "xyxy")
        found = make_detections(
            to_xyxy(boxes[candidates], str(box_format), str(units), size), wanted[candidates, labels], labels
        )
        is_finite = np.isfinite(found.boxes).all(axis=1) & np.isfinite(found.scores)
        if not is_finite.all():
            return found  # for the run to count and drop
        return suppress_once(found, self.settings.max_overlap)


@dataclass(frozen=True)
class BoxesHead:
    """Finished objects: boxes, scores and labels, each an output of its own, perhaps with a count and masks."""

    settings: HeadSettings
    options: Mapping[str, Any]
    has_scores: bool = True
    has_labels: bool = True
    has_counts: bool = False

    @property
    def roles(self) -> Mapping[str, int]:
        """Give the outputs that it reads."""
        found = {"boxes": 3}
        found.update({"scores": 2} if self.has_scores else {})
        found.update({"labels": 2} if self.has_labels else {})
        found.update({"counts": 1} if self.has_counts else {})
        found.update({"masks": 4} if self.options.get("masks") else {})
        return found

    def read(self, outputs: Outputs, n: int, size: Size) -> list[Detections]:
        """Find objects, see `Head.read`."""
        return [self._decode({role: values[i] for role, values in outputs.items()}, size) for i in range(n)]

    def _decode(self, image: Mapping[str, NDArray[Any]], size: Size) -> Detections:
        boxes, labels = image["boxes"], image.get("labels")
        scores = image["scores"] if self.has_scores else boxes[:, _DETS - 1]
        if scores.ndim == 2:
            labels = scores.argmax(axis=1) if labels is None else labels
            scores = scores.max(axis=1)
        offset = int(self.options.get("label_offset", 0))
        classes = np.zeros(len(scores), np.int64) if labels is None else labels_of(labels, offset)
        keep = above(scores, self.settings.threshold) & (classes >= 0) & (classes < self.settings.n_classes)
        if self.has_counts:
            keep[int(image["counts"].reshape(-1)[0]) :] = False
        units, box_format = str(self.options.get("box_units", "pixels")), str(self.options.get("box_format", "xyxy"))
        found = make_detections(to_xyxy(boxes[keep][:, :4], box_format, units, size), scores[keep], classes[keep])
        return found if "masks" not in image else _with_masks(found, image["masks"][keep], size)


def _with_masks(found: Detections, masks: NDArray[Any], size: Size) -> Detections:
    """Give detections the outlines of their masks: of the whole image, or small ones that fill their box.

    Raises:
        ModelIncompatibleError: there are not as many masks as boxes.
    """
    masks = masks[:, 0] if masks.ndim == 4 else masks
    if len(masks) != len(found):
        raise ModelIncompatibleError(f"The network gives {len(masks)} masks for {len(found)} boxes.")
    is_whole = masks.shape[1:] == size
    shapes = [
        outline(mask > _IN_MASK) if is_whole else _in_box(mask, box, size) for mask, box in zip(masks, found.boxes)
    ]
    index = np.array([i for i, shape in enumerate(shapes) if shape is not None], np.intp)
    kept = found.take(index)
    return make_detections(kept.boxes, kept.scores, kept.labels, None, [shapes[i] for i in index])


def _in_box(mask: NDArray[Any], box: FloatArray, size: Size) -> Any:
    """Give the outline of a small mask that is stretched over its box."""
    if not np.isfinite(box).all():
        return None
    left, top = np.maximum(np.floor(box[:2]), 0).astype(int)
    right, bottom = np.minimum(np.ceil(box[2:]), [size[1], size[0]]).astype(int)
    if right <= left or bottom <= top:
        return None
    width, height = np.maximum(box[2:] - box[:2], 1e-6)
    columns = (np.arange(left, right) + 0.5 - box[0]) / width * mask.shape[1] - 0.5
    rows = (np.arange(top, bottom) + 0.5 - box[1]) / height * mask.shape[0] - 0.5
    return outline(sampled(mask.astype(np.float32), rows, columns) > _IN_MASK, float(left), float(top))


def _detr(reading: Reading, settings: HeadSettings) -> DetrHead:
    return DetrHead(settings, {**reading.options, "is_table": "table" in reading.roles})


def _ssd(reading: Reading, settings: HeadSettings) -> SsdHead:
    return SsdHead(settings, reading.options)


def _boxes(reading: Reading, settings: HeadSettings) -> BoxesHead:
    roles = reading.roles
    return BoxesHead(settings, reading.options, "scores" in roles, "labels" in roles, "counts" in roles)


MAKERS: Mapping[str, Callable[[Reading, HeadSettings], Head]] = {"detr": _detr, "ssd": _ssd, "boxes": _boxes}
