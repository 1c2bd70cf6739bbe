"""Merging: from the detections of single tiles to the objects of the raster, each once.

Two kinds of detectors, two rules, one sweep:

- Dense heads give candidates before suppression, each owned by the tile that holds its anchor. Their union is what one
  pass over the whole raster would have given, so greedy suppression over the union is exact.
- Other detectors suppress inside the network. Their detections are owned by centre, with a few pixels of tolerance, and
  only detections near a seam, found by different tiles, are suppressed against each other.

Greedy suppression keeps a detection unless a stronger kept one of its class overlaps it by more than the limit. The
order is total (score, then y, x, size, ...), so the outcome does not depend on the order of tiles. What becomes of the
weaker ones is the rule's method.

The sweep takes tiles in rows from top to bottom. A detection's fate is settled once everything that could overlap it is
known; what is settled is handed out, so memory holds the rows near the sweep line only. A row that holds very many is
taken in portions from top to bottom, too: where the set is cut makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .detections import Detections
from .fuse import fuse
from .greedy import settle
from .overlap import overlap_ratio
from .rivals import POINT_TOLERANCE, Found, Rule, are_points, join, rivals_of, rule_of, strongest_first
from .soft import Logarithms, settle_softly, weakened

__all__ = ["Band", "Found", "Rule", "join", "overlap_ratio", "rule_of", "strongest_first", "suppress", "suppress_once"]

_PORTION = 1 << 16


@dataclass(frozen=True)
class Band:
    """Detections of one row of tiles, and the smallest y that a box of any later row reaches."""

    found: Found
    frontier: float


@dataclass(frozen=True, eq=False)
class _Live:
    """What is not settled, and what each has lost to others, where the method is soft."""

    found: Found
    lost: Logarithms


def suppress(bands: Iterable[Band], rule: Rule) -> Iterator[Band]:
    """Suppress duplicates over all bands, from top to bottom.

    Args:
        bands: The rows of tiles in order.
        rule: What counts as a duplicate, and what becomes of it.

    Yields:
        Bands of settled detections, with the frontier of what is still to come. Their union equals suppression over
        everything at once.
    """
    live, fresh = _Live(join([]), np.empty(0, np.int64)), list[Found]()
    for band in _portions(bands):
        passed = band.found.take(~band.found.is_open)
        fresh.append(band.found.take(band.found.is_open))
        # Where much has to wait, it is looked at again only when it has doubled: the work stays proportional.
        is_due = sum(map(len, fresh)) >= len(live.found) or band.frontier == np.inf
        if is_due:
            settled, live = _settle(_with(live, fresh), band.frontier, rule)
            passed, fresh = join([passed, settled]), []
        yield Band(passed, min(band.frontier, _lowest_top([live.found, *fresh])))
    if fresh:
        yield Band(_settle(_with(live, fresh), np.inf, rule)[0], np.inf)


def _portions(bands: Iterable[Band]) -> Iterator[Band]:
    for band in bands:
        if len(band.found) <= _PORTION:
            yield band
            continue
        tops = band.found.detections.boxes[:, 1]
        order = np.argsort(tops, kind="stable")
        for first in range(0, len(order), _PORTION):
            later = order[first + _PORTION : first + _PORTION + 1]
            frontier = min(band.frontier, float(tops[later].min(initial=np.inf)))
            yield Band(band.found.take(order[first : first + _PORTION]), frontier)


def _with(live: _Live, fresh: list[Found]) -> _Live:
    return _Live(join([live.found, *fresh]), np.append(live.lost, np.zeros(sum(map(len, fresh)), np.int64)))


def _lowest_top(parts: list[Found]) -> float:
    return min(float(part.detections.boxes[:, 1].min(initial=np.inf)) for part in parts)


def _settle(live: _Live, frontier: float, rule: Rule) -> tuple[Found, _Live]:
    """Decide what can be decided; give what is settled and stays, and what has to wait.

    What is settled ends above the frontier, so no later one overlaps it: it need not be remembered. A detection that a
    later row could still overlap is not settled, and neither is one whose fate hangs on such a detection.
    """
    if not len(live.found):
        return live.found, live
    order = strongest_first(live.found)
    found, lost = live.found.take(order), live.lost[order]
    rivals = rivals_of(found, rule)
    boxes = found.detections.boxes
    # Boxes that merely touch have nothing in common; points are compared by their distance.
    may_grow = np.where(are_points(boxes), boxes[:, 3] + POINT_TOLERANCE >= frontier, boxes[:, 3] > frontier)
    if rule.method == "soft-nms":
        soft = settle_softly(rivals, lost, may_grow)
        detections = replace(found.detections, scores=weakened(found.detections.scores, soft.lost))
        stays = ~(soft.is_picked | soft.is_gone)
        settled = replace(found, detections=detections).take(soft.is_picked)
        return settled, _Live(found.take(stays), soft.lost[stays])
    is_fused = rule.method in ("nmm", "wbf")
    fates = settle(rivals, may_grow, is_fused)
    if not is_fused:
        stays = ~(fates.is_kept | fates.is_suppressed)
        return found.take(fates.is_kept), _Live(found.take(stays), lost[stays])
    head, is_done = fates.clusters()
    members = found.take(is_done)
    place = np.cumsum(is_done) - 1
    detections = fuse(members.detections, place[head[is_done]], rule.method)
    settled = replace(found.take(is_done & fates.is_kept), detections=detections)
    return settled, _Live(found.take(~is_done), lost[~is_done])


def suppress_once(detections: Detections, max_overlap: float) -> Detections:
    """Suppress duplicates within one set of detections, strongest first."""
    n = len(detections)
    found = Found(detections, np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, np.bool_))
    kept = join([band.found for band in suppress([Band(found, np.inf)], Rule(max_overlap))])
    return kept.detections.take(strongest_first(kept))
