"""What the detection networks of transformers give, read as the library's own post-processing reads it.

Source: post_process_object_detection of each kind's image processor in transformers. Where that keeps the 100 best,
as many as the network has queries are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Read = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Scores (Q,), labels (Q,) and boxes (Q, 4) of one image: x0 y0 x1 y1, from 0 to 1."""


def softmax_scores(logits: torch.Tensor, boxes: torch.Tensor) -> Read:
    """Read a network whose last class is "no object".

    Shape:
        logits (Q, classes + 1); boxes (Q, 4), centre and size from 0 to 1.
    """
    scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    return scores, labels, corners(boxes)


def sigmoid_scores(logits: torch.Tensor, boxes: torch.Tensor) -> Read:
    """Read a network that scores each class by itself: the best pairs of box and class, as many as there are boxes.

    Shape:
        logits (Q, classes); boxes as above.
    """
    n_queries, n_classes = logits.shape
    scores, index = logits.sigmoid().flatten().topk(n_queries)
    return scores, index % n_classes, corners(boxes)[index // n_classes]


def best_query(logits: torch.Tensor, boxes: torch.Tensor) -> Read:
    """Read a network that scores each box against each text.

    Shape:
        logits (Q, texts); boxes as above.
    """
    best, labels = logits.max(-1)
    return best.sigmoid(), labels, corners(boxes)


def best_phrase(logits: torch.Tensor, boxes: torch.Tensor, phrases: torch.Tensor) -> Read:
    """Read a network that scores each box against each token of one text with all phrases in it.

    A box's score is its best token's; its label is the phrase of its best token that belongs to one.

    Shape:
        logits (Q, T), boxes as above; phrases (T',), number of the phrase that each token belongs to, -1 for none.
    """
    scores = logits.sigmoid().max(-1).values
    inside = logits[:, : len(phrases)].masked_fill(phrases < 0, -torch.inf)
    return scores, phrases[inside.argmax(-1)], corners(boxes)


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """Give x0 y0 x1 y1 of boxes with centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


READERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("detr", "table-transformer", "yolos"), softmax_scores),
    **dict.fromkeys(
        ("conditional_detr", "deformable_detr", "dab-detr", "rt_detr", "rt_detr_v2", "d_fine", "deimv2", "rf_detr",
         "lw_detr"), sigmoid_scores,
    ),
    **dict.fromkeys(("owlvit", "owlv2"), best_query),
    **dict.fromkeys(("grounding-dino", "mm-grounding-dino"), best_phrase),
}  # fmt: skip
"""How each kind of network is read."""
