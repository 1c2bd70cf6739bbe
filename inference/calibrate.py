"""Measure what tiles need to know of a network: its stride, and how far it sees.

Two experiments on noise. Perturbation: change a small block of pixels and see how far away outputs change; that is the
radius of the receptive field. Shift: move the image and see by which steps the outputs move with it and do not change;
that is the stride. Both are properties of the graph, so they are measured once for each content hash and remembered.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .detections import FloatArray
from .detectors.protocol import Traits
from .jobs import cache_folder

_VERSION = 2
"""Of the way of measuring: what an older one has measured is not recalled."""
_BLOCK = 8
_SIZES = (512, 1024)
_MAX_STRIDE = 256
_COMMON_STRIDE = 32
"""The coarsest step inside most networks."""
_TOLERANCE = 1e-3

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Response:
    """What a dense head says to one image, before any threshold.

    Shape:
        values (A, K), boxes relative to their anchors and scores; anchors (A, 2), network pixels.
    """

    values: FloatArray
    anchors: FloatArray
    stride: int
    """The coarsest output grid's stride; the network's own is a multiple of it."""


Respond = Callable[[NDArray[Any]], Response]


@dataclass(frozen=True)
class Calibration:
    """The measured facts, in network pixels. A radius of None: the network sees everything, or too far to tell."""

    stride: int
    receptive_field_radius: int | None


def calibrated_traits(traits: Traits, respond: Respond, n_bands: int, sha256: str, size: int | None) -> Traits:
    """Give the traits with measured stride and receptive field, from memory where this content was measured before."""
    store = cache_folder() / "calibration" / f"{sha256}-{_VERSION}.json"
    calibration = _recall(store)
    if calibration is None:
        calibration = measure(respond, n_bands, size)
        _remember(store, calibration)
    return replace(traits, stride=calibration.stride, receptive_field_radius=calibration.receptive_field_radius)


def _recall(store: Path) -> Calibration | None:
    try:
        data = json.loads(store.read_text(encoding="utf-8"))
        return Calibration(int(data["stride"]), data["receptive_field_radius"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(store: Path, calibration: Calibration) -> None:
    data = {"stride": calibration.stride, "receptive_field_radius": calibration.receptive_field_radius}
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps(data), encoding="utf-8")
    except OSError as error:
        logger.warning("The calibration cannot be kept: %s", error)


def measure(respond: Respond, n_bands: int, size: int | None = None) -> Calibration:
    """Measure a network.

    Args:
        respond: Runs it on one image (C, S, S) of raster values.
        n_bands: C.
        size: The only S it takes; None: any.
    """
    for side in (size,) if size else _SIZES:
        radius = _radius(respond, n_bands, side)
        if radius is not None:
            return Calibration(_stride(respond, n_bands, side, radius), radius)
    # Inside the network steps may be coarser than the output's; which ones cannot be seen here.
    stride = math.lcm(respond(_noise(n_bands, size or _SIZES[0], seed=0)).stride, _COMMON_STRIDE)
    return Calibration(stride, None)


def _noise(n_bands: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Give an image of fine noise on coarse patches, so that features of all scales fire."""
    random = np.random.default_rng(seed)
    patches = random.integers(0, 160, (n_bands, -(-size // 32), -(-size // 32)))
    coarse = patches.repeat(32, axis=1).repeat(32, axis=2)[:, :size, :size]
    return (coarse + random.integers(0, 96, (n_bands, size, size))).astype(np.uint8)


def _radius(respond: Respond, n_bands: int, size: int) -> int | None:
    start = size // 2 // _BLOCK * _BLOCK
    centre = start + _BLOCK / 2
    farthest = 0.0
    for seed in range(3):
        image = _noise(n_bands, size, seed)
        changed = image.copy()
        changed[:, start : start + _BLOCK, start : start + _BLOCK] ^= 0xFF
        before, after = respond(image), respond(changed)
        moved = np.any(before.values != after.values, axis=1)
        distance = np.abs(before.anchors - centre).max(axis=1) - _BLOCK / 2
        farthest = max(farthest, float(distance[moved].max(initial=0.0)))
    reach = min(start, size - start - _BLOCK)
    margin = before.stride
    return math.ceil(farthest) if farthest < reach - margin else None


def _stride(respond: Respond, n_bands: int, size: int, radius: int) -> int:
    stride = respond(_noise(n_bands, size, 0)).stride
    while stride < _MAX_STRIDE and not _moves_with(respond, n_bands, size, radius, stride):
        stride *= 2
    return stride


def _moves_with(respond: Respond, n_bands: int, size: int, radius: int, shift: int) -> bool:
    """Tell whether an image moved by `shift` gives the same outputs, moved."""
    image = _noise(n_bands, size + shift, seed=3)
    still, moved = respond(image[:, :size, :size]), respond(image[:, shift:, shift:])
    places = {tuple(anchor): index for index, anchor in enumerate(moved.anchors.tolist())}
    inside = np.all((still.anchors > radius + shift) & (still.anchors < size - radius), axis=1)
    pairs = [
        (index, places[x - shift, y - shift])
        for index, (x, y) in enumerate(still.anchors.tolist())
        if inside[index] and (x - shift, y - shift) in places
    ]
    if not pairs:
        return True
    first, second = np.array(pairs).T
    return bool(np.allclose(still.values[first], moved.values[second], rtol=_TOLERANCE, atol=_TOLERANCE))
