"""Task-aligned label assignment and the detection loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from network import STRIDE, cell_centres, corner_boxes
from torch import Tensor
from torch.nn import functional

TOP_CELLS = 9
"""Cells at most that learn one crown."""

SCORE_POWER = 0.5
IOU_POWER = 4.0
BOX_WEIGHT = 4.0


@dataclass(frozen=True)
class Target:
    """What one image's cells should predict; A is the number of cells.

    Attributes:
        scores: float32, (A,), 0 for background, else the box quality to predict.
        boxes: float32, (A, 4), corner boxes in pixels, meaningful where the score is above 0.
        weights: float32, (A,), 0 where the score is left out of the loss.
    """

    scores: Tensor
    boxes: Tensor
    weights: Tensor


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        first: (n, 4), corner boxes.
        second: (m, 4), corner boxes.

    Returns:
        (n, m).
    """
    upper = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    lower = torch.maximum(first[:, None, :2], second[None, :, :2])
    intersection = (upper - lower).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return intersection / (areas[0][:, None] + areas[1][None] - intersection).clamp(min=1e-6)


def giou_loss(predicted: Tensor, wanted: Tensor) -> Tensor:
    """One minus the generalised intersection over union, row by row.

    Args:
        predicted: (n, 4), corner boxes.
        wanted: (n, 4), corner boxes.

    Returns:
        (n,), from 0 (equal) to 2.
    """
    overlap = torch.minimum(predicted[:, 2:], wanted[:, 2:]) - torch.maximum(predicted[:, :2], wanted[:, :2])
    hull = torch.maximum(predicted[:, 2:], wanted[:, 2:]) - torch.minimum(predicted[:, :2], wanted[:, :2])
    intersection = overlap.clamp(min=0).prod(-1)
    union = (predicted[:, 2:] - predicted[:, :2]).prod(-1) + (wanted[:, 2:] - wanted[:, :2]).prod(-1) - intersection
    enclosing = hull.prod(-1).clamp(min=1e-6)
    return 1 - intersection / union.clamp(min=1e-6) + (enclosing - union) / enclosing


def candidate_cells(centres: Tensor, boxes: Tensor) -> Tensor:
    """Mark the cells that may learn each box: those in its inscribed ellipse, and the one under its centre.

    Args:
        centres: (A, 2), pixels.
        boxes: (n, 4), corner boxes in pixels.

    Returns:
        bool, (n, A).
    """
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    offset = (centres[None] - middle[:, None]).abs()
    in_ellipse = ((offset / half[:, None].clamp(min=1e-3)) ** 2).sum(-1) <= 1
    return in_ellipse | (offset.amax(-1) <= STRIDE / 2)


@torch.no_grad()
def assign(scores: Tensor, predicted: Tensor, centres: Tensor, boxes: Tensor, ignore: Tensor) -> Target:
    """Give each crown the cells whose score and box together fit it best (task-aligned assignment).

    Args:
        scores: (A,), predicted scores 0 to 1.
        predicted: (A, 4), predicted corner boxes in pixels.
        centres: (A, 2), cell centres in pixels.
        boxes: (n, 4), true corner boxes in pixels.
        ignore: bool, (A,), cells that must not learn background.

    Returns:
        The targets.
    """
    weights = (~ignore).float()
    if len(boxes) == 0:
        return Target(torch.zeros_like(scores), torch.zeros_like(predicted), weights)
    iou = pairwise_iou(boxes, predicted)
    fit = scores[None].clamp(min=1e-4) ** SCORE_POWER * iou**IOU_POWER + 1e-9
    fit = fit * candidate_cells(centres, boxes)
    best, cells = fit.topk(min(TOP_CELLS, fit.shape[1]), dim=1)
    chosen = torch.zeros_like(fit).scatter_(1, cells, best)
    owner_fit, owner = chosen.max(0)
    positive = owner_fit > 0
    owned = torch.zeros_like(chosen)
    owned[owner[positive], positive.nonzero().squeeze(1)] = owner_fit[positive]
    peak_iou = torch.where(owned > 0, iou, torch.zeros_like(iou)).amax(1)
    quality = owned / owned.amax(1, keepdim=True).clamp(min=1e-12) * peak_iou[:, None]
    return Target(quality.amax(0), boxes[owner], torch.where(positive, torch.ones_like(weights), weights))


def detection_loss(
    logits: Tensor, distances: Tensor, boxes: list[Tensor], ignore: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Quality-aware score loss plus GIoU loss, both normalised by the sum of the target scores.

    Args:
        logits: (N, 1, h, w).
        distances: (N, 4, h, w), pixels.
        boxes: N tensors (n, 4), true corner boxes in pixels.
        ignore: bool, (N, h, w).

    Returns:
        The loss, and its parts for the log.
    """
    centres = cell_centres(*logits.shape[2:])
    flat, predicted = logits.flatten(1), corner_boxes(distances)
    targets = [
        assign(*parts)
        for parts in zip(
            flat.detach().sigmoid(), predicted.detach(), [centres] * len(boxes), boxes, ignore.flatten(1), strict=True
        )
    ]
    scores = torch.stack([target.scores for target in targets])
    weights = torch.stack([target.weights for target in targets])
    wanted = torch.stack([target.boxes for target in targets])
    norm = scores.sum().clamp(min=1.0)
    score_loss = (functional.binary_cross_entropy_with_logits(flat, scores, reduction="none") * weights).sum() / norm
    positive = scores > 0
    box_loss = (giou_loss(predicted[positive], wanted[positive]) * scores[positive]).sum() / norm
    total = score_loss + BOX_WEIGHT * box_loss
    return total, {"score": score_loss.item(), "box": box_loss.item(), "positive": float(positive.sum())}
