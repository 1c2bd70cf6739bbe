"""Candidates: which boxes have points in common, for a million boxes in flat memory.

The plane is cut into horizontal stripes, as high as boxes are on average, and each box is entered in every stripe that
it reaches. Inside a stripe, of one class, entries are sorted by their left edges: a box meets those that start before
it ends. How many these are is known before any of them is looked at, so memory can be kept to a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .detections import FloatArray

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Keys = NDArray[np.int64]
Pairs = tuple[Indices, Indices]

_X_BITS, _STRIPE_BITS, _CLASS_BITS = 23, 23, 17
_AT_ONCE = 1 << 16
"""Pairs that are looked at together."""


@dataclass(frozen=True, eq=False)
class Index:
    """Boxes, entered in the stripes that they reach.

    Shape:
        low (N,), high (N,), upper and lower edges of the boxes; box (E,), the box of each entry; key (E,), class,
        stripe and left edge in one number, ascending; last (E,), the key of the right edge; is_first (E,), whether the
        stripe is the uppermost one of its box.
    """

    low: FloatArray
    high: FloatArray
    box: Indices
    key: Keys
    last: Keys
    is_first: Mask

    def count(self, members: Indices) -> int:
        """Give how many pairs `within` has to look at."""
        entries = self._entries(members)
        key = self.key[entries]
        return int((np.searchsorted(key, self.last[entries], "right") - np.arange(1, len(key) + 1)).sum())

    def within(self, members: Indices) -> Iterator[Pairs]:
        """Give all pairs of members whose boxes may have points in common, each once, in portions."""
        entries = self._entries(members)
        key = self.key[entries]
        start = np.arange(1, len(key) + 1)
        yield from self._meeting(entries, entries, start, np.searchsorted(key, self.last[entries], "right"))

    def between(self, members: Indices, others: Indices) -> Iterator[Pairs]:
        """Give all pairs (member, other) whose boxes may have points in common, each once, in portions."""
        a, b = self._entries(members), self._entries(others)
        others_keys, members_keys = self.key[b], self.key[a]
        start, stop = (
            np.searchsorted(others_keys, members_keys, "left"),
            np.searchsorted(others_keys, self.last[a], "right"),
        )
        yield from self._meeting(a, b, start, stop)
        # The same seen from the others; those that start at the same place are in the first part.
        start, stop = (np.searchsorted(members_keys, keys, "right") for keys in (others_keys, self.last[b]))
        yield from ((member, other) for other, member in self._meeting(b, a, start, stop))

    def _entries(self, members: Indices) -> Indices:
        if len(members) == len(self.low):
            return np.arange(len(self.box))
        is_member = np.zeros(len(self.low), np.bool_)
        is_member[members] = True
        return np.flatnonzero(is_member[self.box])

    def _meeting(self, entries: Indices, others: Indices, start: Indices, stop: Indices) -> Iterator[Pairs]:
        for row, column in _ranges(start, stop):
            a, b = entries[row], others[column]
            i, j = self.box[a], self.box[b]
            # Boxes that meet in several stripes meet in the uppermost stripe of one of them.
            meets = self.is_first[a] | self.is_first[b]
            meets &= (self.low[i] <= self.high[j]) & (self.low[j] <= self.high[i])
            if meets.any():
                yield i[meets], j[meets]


def _ranges(start: Indices, stop: Indices) -> Iterator[Pairs]:
    """Give (row, column) for each row and each column from its start to its stop, a limited number at once."""
    rows = np.flatnonzero(stop > start)
    start, counts = start[rows], (stop - start)[rows]
    ends = np.cumsum(counts)
    first = 0
    while first < len(rows):
        done = ends[first - 1] if first else 0
        after = max(first + 1, int(np.searchsorted(ends, done + _AT_ONCE, "right")))
        part = counts[first:after]
        shift = start[first:after] - (ends[first:after] - part - done)
        yield np.repeat(rows[first:after], part), np.arange(part.sum()) + np.repeat(shift, part)
        first = after


def make_index(boxes: FloatArray, classes: NDArray[np.int64], meets: Mask) -> Index:
    """Enter boxes in their stripes.

    Args:
        boxes: (N, 4), finite.
        classes: (N,), 0 or more; boxes of different classes do not meet, as long as there are not very many classes.
        meets: (N,), whether the box can meet any other.
    """
    x0, y0, x1, y1 = boxes.T
    left, width = x0.min(initial=np.inf), x1.max(initial=-np.inf) - x0.min(initial=np.inf)
    top, height = y0.min(initial=np.inf), y1.max(initial=-np.inf) - y0.min(initial=np.inf)
    stripe_height = max(float((y1 - y0)[meets].mean()), height / (1 << (_STRIPE_BITS - 1))) if meets.any() else 1.0
    first, last = (_steps(y - top, stripe_height, _STRIPE_BITS) for y in (y0, y1))
    n_stripes = np.where(meets, last - first + 1, 0)
    box = np.repeat(np.arange(len(boxes)), n_stripes)
    n_before = np.repeat(np.cumsum(n_stripes) - n_stripes - first, n_stripes)
    stripe = np.arange(len(box)) - n_before
    row = ((classes % (1 << _CLASS_BITS)) << (_STRIPE_BITS + _X_BITS))[box] | (stripe << _X_BITS)
    step = width / (1 << (_X_BITS - 1))
    key = row | _steps(x0 - left, step, _X_BITS)[box]
    order = np.argsort(key)
    box = box[order]
    return Index(y0, y1, box, key[order], row[order] | _steps(x1 - left, step, _X_BITS)[box],
                 stripe[order] == first[box])  # fmt: skip


def _steps(lengths: FloatArray, step: float, bits: int) -> Keys:
    """Give whole numbers of steps; larger lengths never give smaller numbers."""
    steps = lengths / step if step > 0 else np.zeros_like(lengths)
    return np.minimum(steps, (1 << bits) - 1).astype(np.int64)
