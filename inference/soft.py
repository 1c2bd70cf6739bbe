"""Soft suppression: a detection loses score for each stronger rival, and goes when too little is left.

The strongest detection is picked, the scores of its rivals are multiplied by 1 - overlap, and so on with what is then
the strongest: linear decay, which leaves detections alone that overlap by no more than the limit.

Scores are added up as logarithms in whole numbers here: their sums do not depend on the order.

Source:
    Bodla, Singh, Chellappa, Davis, "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017, section 3.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .candidates import Mask
from .detections import FloatArray
from .overlap import Indices
from .rivals import Rivals

Logarithms = NDArray[np.int64]

_UNIT = 1 << 38
_NOTHING = 24 * _UNIT
"""What leaves too little of any score."""
_WEAKEST = 150 * _UNIT


@dataclass(frozen=True, eq=False)
class SoftFates:
    """What is known of detections, strongest first.

    Shape:
        lost (N,) int64, what each has lost up to now, see `weakened`; waits (N,), whether something that may still be
        stronger may take more of it; is_picked (N,), whether its score is final; is_gone (N,), whether too little is
        left of it.
    """

    lost: Logarithms
    waits: Mask
    is_picked: Mask
    is_gone: Mask


def weakened(scores: NDArray[np.float32], lost: Logarithms) -> NDArray[np.float32]:
    """Give what is left of scores."""
    left = (scores * np.exp2(-lost / _UNIT)).astype(np.float32)
    return np.where(lost > 0, left, scores)


def _logarithms(shares: FloatArray, most: int) -> Logarithms:
    with np.errstate(divide="ignore"):
        logarithms: Logarithms = np.minimum(-np.log2(np.maximum(shares, 0)) * _UNIT, most).astype(np.int64)
    return logarithms


def settle_softly(rivals: Rivals, lost: Logarithms, may_grow: Mask) -> SoftFates:
    """Decide what can be decided: pick what nothing that may be stronger can weaken any more.

    Args:
        rivals: The detections.
        lost: (N,), what each has lost to those that were picked before.
        may_grow: (N,), whether rivals of it may still come.
    """
    n = len(rivals)
    fates = SoftFates(lost.copy(), may_grow.copy(), np.zeros(n, np.bool_), np.zeros(n, np.bool_))
    scores = _logarithms(rivals.found.detections.scores.astype(np.float64), _WEAKEST)
    limit = int(_logarithms(np.array([rivals.rule.threshold]), _WEAKEST)[0])
    waiting = np.arange(n)
    while len(waiting):
        now = scores[waiting] + fates.lost[waiting]
        waiting = waiting[np.lexsort((waiting, now))]
        block = rivals.strongest(waiting)
        rest = waiting[len(block) :]
        # Scores only fall: nothing of the rest comes before its strongest.
        floor = (int(scores[rest[0]] + fates.lost[rest[0]]), int(rest[0])) if len(rest) else (2 * _WEAKEST, 0)
        is_stuck = _pick(rivals, block, scores, fates, limit, floor)
        _weaken(rivals, block[fates.is_picked[block]], rest, fates)
        fates.is_gone[rest] = _is_gone(scores[rest], fates.lost[rest], limit)
        fates.waits[rivals.reached(block[is_stuck], rest[~fates.waits[rest]])] = True
        rest = np.concatenate([block[~(is_stuck | fates.is_picked[block])], rest])
        waiting = rest[~fates.is_gone[rest]]
    return fates


def _is_gone(scores: Logarithms, lost: Logarithms, limit: int) -> Mask:
    is_gone: Mask = (lost > 0) & ((scores + lost > limit) | (lost >= _NOTHING))
    return is_gone


def _weaken(rivals: Rivals, picked: Indices, others: Indices, fates: SoftFates) -> None:
    for _, other, overlap in rivals.between(picked, others):
        np.add.at(fates.lost, other, _logarithms(1 - overlap, _NOTHING))
        np.minimum(fates.lost, _WEAKEST, out=fates.lost)


def _pick(
    rivals: Rivals, block: Indices, scores: Logarithms, fates: SoftFates, limit: int, floor: tuple[int, int]
) -> Mask:
    """Pick what is stronger than the floor, one after the other; tell which of the block are stuck.

    Who waits is stuck when its turn comes, and then its weaker rivals wait, too.
    """
    first, second, overlap = rivals.within(block)
    members, ends = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = np.concatenate([ends[: len(first)], ends[len(first) :]]), np.concatenate(
        [ends[len(first) :], ends[: len(first)]]
    )
    takes = np.tile(_logarithms(1 - overlap, _NOTHING), 2)
    order = np.argsort(one, kind="stable")
    starts = np.searchsorted(one[order], np.arange(len(members) + 1)).tolist()
    other_list, takes_list = other[order].tolist(), takes[order].tolist()
    is_stuck = np.zeros(len(rivals), np.bool_)
    is_alone = np.ones(len(rivals), np.bool_)
    is_alone[members] = False
    alone = block[is_alone[block]]
    fates.is_picked[alone[~fates.waits[alone]]] = True
    is_stuck[alone[fates.waits[alone]]] = True

    score, lost, waits = scores[members].tolist(), fates.lost[members].tolist(), fates.waits[members].tolist()
    numbers, is_done = members.tolist(), [False] * len(members)
    heap = [(s + l, k) for k, (s, l) in enumerate(zip(score, lost))]
    heapq.heapify(heap)
    while heap and (heap[0][0], numbers[heap[0][1]]) < floor:
        key, k = heapq.heappop(heap)
        if is_done[k] or key != score[k] + lost[k]:
            continue
        is_done[k] = True
        if waits[k]:
            is_stuck[numbers[k]] = True
        else:
            fates.is_picked[numbers[k]] = True
        for place in range(starts[k], starts[k + 1]):
            m = other_list[place]
            if is_done[m]:
                continue
            if waits[k]:
                waits[m] = True
                continue
            lost[m] = min(lost[m] + takes_list[place], _WEAKEST)
            if score[m] + lost[m] > limit or lost[m] >= _NOTHING:
                is_done[m] = fates.is_gone[numbers[m]] = True
            else:
                heapq.heappush(heap, (score[m] + lost[m], m))
    fates.lost[members], fates.waits[members] = lost, waits
    return is_stuck[block]
