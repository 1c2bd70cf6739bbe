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
_FEW = 64


@dataclass(frozen=True, eq=False)
class SoftFates:
    """What becomes of detections, strongest first.

    Shape:
        scores (N,) int64, logarithms, smaller is stronger; lost (N,) int64, what each has lost, see `weakened`; waits
        (N,), whether something that may still be stronger may take more of it; is_stuck (N,), whether nothing can be
        said of it, therefore; is_picked (N,), whether its score is final; is_gone (N,), whether too little is left.

    Attributes:
        limit: The score of which nothing stays: what a network gives is above it.
    """

    scores: Logarithms
    lost: Logarithms
    waits: Mask
    is_stuck: Mask
    is_picked: Mask
    is_gone: Mask
    limit: int

    def now(self, which: Indices) -> Logarithms:
        """Give the present scores of some."""
        return self.scores[which] + self.lost[which]

    def are_undecided(self, which: Indices) -> Mask:
        """Tell which are still in the race."""
        undecided: Mask = ~(self.is_stuck | self.is_picked | self.is_gone)[which]
        return undecided

    def decide(self, which: Indices) -> None:
        """Decide those whose turn has come: what has to wait is stuck, the others are picked."""
        self.is_stuck[which] = self.waits[which]
        self.is_picked[which] = ~self.waits[which]

    def weaken(self, which: Indices, takes: Logarithms) -> None:
        """Let each lose what the others take of it."""
        np.add.at(self.lost, which, takes)
        self.lost[which] = np.minimum(self.lost[which], _WEAKEST)
        self.is_gone[which] = (self.now(which) >= self.limit) | (self.lost[which] >= _NOTHING)


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
    scores = _logarithms(rivals.found.detections.scores.astype(np.float64), _WEAKEST)
    limit = int(_logarithms(np.array([rivals.rule.threshold]), _WEAKEST)[0])
    no = np.zeros(n, np.bool_)
    fates = SoftFates(scores, lost.copy(), may_grow.copy(), no, no.copy(), no.copy(), limit)
    waiting = rivals.in_question(may_grow)
    # Where all have to wait, none can weaken another.
    while not fates.waits[waiting].all():
        waiting = waiting[np.lexsort((waiting, fates.now(waiting)))]
        block = rivals.strongest(waiting)
        rest = waiting[len(block) :]
        # Scores only fall: nothing of the rest comes before its strongest.
        floor = (int(fates.now(rest[:1])[0]), int(rest[0])) if len(rest) else (2 * _WEAKEST, 0)
        _settle_block(rivals, block, fates, floor)
        for _, other, overlap in rivals.between(block[fates.is_picked[block]], rest):
            fates.weaken(other, _logarithms(1 - overlap, _NOTHING))
        stuck = block[fates.is_stuck[block]]
        fates.waits[rivals.reached(stuck, rest[~(fates.waits | fates.is_gone)[rest]])] = True
        waiting = waiting[fates.are_undecided(waiting)]
    return fates


def _settle_block(rivals: Rivals, block: Indices, fates: SoftFates, floor: tuple[int, int]) -> None:
    """Decide what is stronger than the floor: in rounds while each leaves at most half of the pairs, then by turns.

    Who waits is stuck when its turn comes, and then its weaker rivals wait, too.
    """
    first, second, overlap = rivals.within(block)
    takes = _logarithms(1 - overlap, _NOTHING)
    n_before = 2 * len(first)
    while _FEW < len(first) <= n_before / 2:
        n_before = len(first)
        first, second, takes = _round(first, second, takes, fates, floor)
    _one_by_one(first, second, takes, fates, floor)
    rest = block[fates.are_undecided(block)]
    fates.decide(rest[_is_before(fates, rest, floor)])


def _is_before(fates: SoftFates, which: Indices, floor: tuple[int, int]) -> Mask:
    now = fates.now(which)
    is_before: Mask = (now < floor[0]) | ((now == floor[0]) & (which < floor[1]))
    return is_before


def _round(
    first: Indices, second: Indices, takes: Logarithms, fates: SoftFates, floor: tuple[int, int]
) -> tuple[Indices, Indices, Logarithms]:
    """Decide those that are stronger than all their rivals; give the pairs that are left."""
    now, now_second = fates.now(first), fates.now(second)
    is_first = (now < now_second) | ((now == now_second) & (first < second))
    stronger, weaker = np.where(is_first, first, second), np.where(is_first, second, first)
    has_stronger = np.zeros(len(fates.lost), np.bool_)
    has_stronger[weaker] = True
    is_ready = ~has_stronger[stronger] & _is_before(fates, stronger, floor)
    fates.decide(stronger[is_ready])
    waits = is_ready & fates.waits[stronger]
    hits = is_ready & ~waits
    fates.weaken(weaker[hits], takes[hits])
    fates.waits[weaker[waits]] = True
    is_left = fates.are_undecided(first) & fates.are_undecided(second)
    return first[is_left], second[is_left], takes[is_left]


def _one_by_one(first: Indices, second: Indices, takes: Logarithms, fates: SoftFates, floor: tuple[int, int]) -> None:
    rivals: dict[int, list[tuple[int, int]]] = {}
    for one, other, take in zip(first.tolist(), second.tolist(), takes.tolist()):
        rivals.setdefault(one, []).append((other, take))
        rivals.setdefault(other, []).append((one, take))
    members = np.array([*rivals], np.intp)
    score = dict(zip(rivals, fates.scores[members].tolist()))
    lost = dict(zip(rivals, fates.lost[members].tolist()))
    waits = dict(zip(rivals, fates.waits[members].tolist()))
    heap = [(score[one] + lost[one], one) for one in rivals]
    heapq.heapify(heap)
    turns: list[int] = []
    undecided = set(rivals)
    while heap and heap[0] < floor:
        key, one = heapq.heappop(heap)
        if one not in undecided or key != score[one] + lost[one]:
            continue
        undecided.remove(one)
        turns.append(one)
        for other, take in rivals[one]:
            if other not in undecided:
                continue
            if waits[one]:
                waits[other] = True
                continue
            lost[other] += take
            if score[other] + lost[other] >= fates.limit or lost[other] >= _NOTHING:
                undecided.remove(other)
                fates.is_gone[other] = True
            else:
                heapq.heappush(heap, (score[other] + lost[other], other))
    fates.lost[members], fates.waits[members] = list(lost.values()), list(waits.values())
    fates.decide(np.array(turns, np.intp))
