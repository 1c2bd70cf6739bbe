"""Greedy suppression: a detection stays unless a stronger one that stays is its rival."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .candidates import Mask
from .overlap import Indices
from .rivals import Rivals

_NONE = -1
_FEW = 64


@dataclass(frozen=True, eq=False)
class Fates:
    """What is known of detections, strongest first.

    Shape:
        head (N,), the strongest detection that stays and suppresses this one, or -1; waits (N,) bool, whether one that
        is not settled yet, or not known yet, may still take it, or be a stronger head.
    """

    head: Indices
    waits: Mask

    @property
    def is_kept(self) -> Mask:
        """Tell which stay, for certain."""
        kept: Mask = (self.head == _NONE) & ~self.waits
        return kept

    @property
    def is_suppressed(self) -> Mask:
        """Tell which go, for certain; those that wait do not know their head yet."""
        suppressed: Mask = self.head != _NONE
        return suppressed

    def clusters(self) -> tuple[Indices, Mask]:
        """Give the head of each one, its own for those without, and whether its whole cluster is known."""
        is_certain = self.is_kept
        head = np.where(self.is_suppressed, self.head, np.arange(len(self.head)))
        is_certain[head[self.waits]] = False
        return head, is_certain[head]


def settle(rivals: Rivals, may_grow: Mask, wants_heads: bool) -> Fates:
    """Decide what can be decided.

    Args:
        rivals: The detections.
        may_grow: (N,), whether rivals of it may still come.
        wants_heads: Whether it matters which detection suppresses one.
    """
    fates = Fates(np.full(len(rivals), _NONE), may_grow.copy())
    waiting = rivals.in_question(may_grow)
    # Where all have to wait, none can suppress another.
    while not fates.waits[waiting].all():
        block = rivals.strongest(waiting)
        _settle_block(rivals, block, fates)
        waiting = waiting[len(block) :]
        _suppress(rivals, block[fates.is_kept[block]], waiting, fates)
        asked = waiting if wants_heads else waiting[~fates.is_suppressed[waiting]]
        open_ones = block[(fates.waits & ~fates.is_suppressed)[block]]
        fates.waits[rivals.reached(open_ones, asked[~fates.waits[asked]])] = True
        waiting = waiting[~fates.is_suppressed[waiting]]
    return fates


def _settle_block(rivals: Rivals, block: Indices, fates: Fates) -> None:
    """Decide within a block: in rounds as long as each leaves at most half of the pairs, then one after the other."""
    strong, weak, _ = rivals.within(block)
    n_before = 2 * len(strong)
    while _FEW < len(strong) <= n_before / 2:
        n_before = len(strong)
        strong, weak = _round(strong, weak, fates)
    _one_by_one(strong, weak, fates)


def _round(strong: Indices, weak: Indices, fates: Fates) -> tuple[Indices, Indices]:
    """Look at the strongest rival of each, where that has no rivals itself; give the pairs that are left."""
    has_stronger = np.zeros(len(fates.head), np.bool_)
    has_stronger[weak] = True
    is_ready = ~has_stronger[strong]
    is_ready[1:] &= weak[1:] != weak[:-1]
    stronger, weaker = strong[is_ready], weak[is_ready]
    is_open = fates.waits[stronger]
    fates.waits[weaker[is_open]] = True
    fates.head[weaker[~is_open]] = stronger[~is_open]
    is_left = ~is_ready & (fates.head[weak] == _NONE) & (fates.head[strong] == _NONE)
    return strong[is_left], weak[is_left]


def _one_by_one(strong: Indices, weak: Indices, fates: Fates) -> None:
    """Go through the pairs by the weaker one: when one's turn comes, all stronger ones are decided."""
    members = np.unique(np.concatenate([strong, weak]))
    head = dict(zip(members.tolist(), fates.head[members].tolist()))
    waits = dict(zip(members.tolist(), fates.waits[members].tolist()))
    for stronger, weaker in zip(strong.tolist(), weak.tolist()):
        if head[stronger] == _NONE and head[weaker] == _NONE:
            if waits[stronger]:
                waits[weaker] = True
            else:
                head[weaker] = stronger
    fates.head[members], fates.waits[members] = list(head.values()), list(waits.values())


def _suppress(rivals: Rivals, kept: Indices, others: Indices, fates: Fates) -> None:
    n = len(fates.head)
    strongest = np.full(n, n)
    for member, other, _ in rivals.between(kept, others):
        np.minimum.at(strongest, other, member)
    hit = strongest < n
    fates.head[hit] = strongest[hit]
