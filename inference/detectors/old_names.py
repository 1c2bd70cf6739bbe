"""Names that torchvision's detectors gave their weights before 0.15, and what they became."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

Names = Sequence[tuple["re.Pattern[str]", str]]

_PYRAMID = (re.compile(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)"), r"\1.0.\2")

RCNN: Names = (
    _PYRAMID,
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
    *((re.compile(rf"roi_heads\.mask_head\.mask_fcn{n}\.(weight|bias)"), rf"roi_heads.mask_head.{n - 1}.0.\1")
      for n in (1, 2, 3, 4)),
)  # fmt: skip
RETINANET: Names = (
    _PYRAMID,
    *((re.compile(rf"(head\.\w+_head\.conv)\.{2 * n}\.(weight|bias)"), rf"\1.{n}.0.\2") for n in (0, 1, 2, 3)),
)  # fmt: skip
FCOS: Names = (_PYRAMID,)


def with_new_names(state: Mapping[str, torch.Tensor], names: Names) -> dict[str, torch.Tensor]:
    """Give weights under the names that torchvision has for them today."""
    renamed = {}
    for name, tensor in state.items():
        patterns = (pattern.sub(new, name) for pattern, new in names if pattern.fullmatch(name))
        renamed[next(patterns, name)] = tensor
    return renamed
