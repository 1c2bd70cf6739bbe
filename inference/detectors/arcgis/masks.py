"""From an instance mask, small and in its box, to the object's outline in the tile.

Source:
    Masks are put in their places by torchvision's own functions, as its MaskRCNN does it.
"""

from __future__ import annotations

from typing import Any

import torch
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

from ...outlines import outline

_LOWEST = 0.5  # of a pixel's probability
_MARGIN = 1  # pixels of zeros around a small mask, so that it can end inside its box


def outlines(masks: torch.Tensor, boxes: torch.Tensor, side: int) -> list[Any]:
    """Give each object's outline along the edges of the pixels that its mask covers with 0.5 or more.

    A mask is enlarged in the window of its box alone: a thousand masks of whole tiles would need gigabytes.

    Shape:
        masks (N, 1, M, M), probabilities in the boxes; boxes (N, 4) in the tile's pixels; gives N polygons with holes,
        multipolygons where a mask is in several parts, or None where a mask covers no pixel.
    """
    masks, factor = expand_masks(masks.cpu(), _MARGIN)
    corners = expand_boxes(boxes.cpu(), factor).to(torch.int64).tolist()
    return [_outline(mask[0], box, side) for mask, box in zip(masks, corners)]


def _outline(mask: torch.Tensor, box: list[int], side: int) -> Any:
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2] + 1, side), min(box[3] + 1, side)
    if right <= left or bottom <= top:
        return None
    inside = [box[0] - left, box[1] - top, box[2] - left, box[3] - top]
    pasted = paste_mask_in_image(mask, inside, bottom - top, right - left)
    return outline((pasted >= _LOWEST).numpy(), left, top)
