"""Links: which outlines of different tiles show the same object."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import Detections, FloatArray, ObjectArray, shapes_of
from .merge import Found
from .object_file import CLASS_TEXT
from .overlap import Indices
from .tiling import VIEW_EDGE, TileGrid

_SAME = 0.5
"""Two pieces are one when they have more than this in common: then a piece has at most one partner in a tile."""
_AT_ONCE = 4096
"""Pairs of pieces that are compared at once: their common parts are held in memory."""


def links(found: Found, n_old: int, component: NDArray[np.int64], grid: TileGrid) -> tuple[Indices, Indices]:
    """Give the pairs of outlines of one object that are new.

    Args:
        found: Outlines of several tiles.
        n_old: The first so many have been compared with each other before.
        component: (N,) equal where outlines are known to be of one object.
        grid: The tiles.
    """
    rectangles = shapely.box(*found.detections.boxes.T)
    i, j = shapely.STRtree(rectangles).query(rectangles[n_old:])
    i = i + n_old
    may_be = (j < i) & (found.tiles[i] != found.tiles[j]) & (component[i] != component[j])
    i, j = i[may_be], j[may_be]
    classes = _classes(found.detections)
    is_same = classes[i] == classes[j]
    i, j = _meeting(i[is_same], j[is_same], views_of(found, grid))
    agree = _agree(found, i, j, grid)
    return i[agree], j[agree]


def _meeting(i: Indices, j: Indices, views: FloatArray) -> tuple[Indices, Indices]:
    """Keep the pairs whose tiles' views have pixels or an edge in common: outlines may lean out of the views."""
    sides = np.minimum(views[i, 2:], views[j, 2:]) - np.maximum(views[i, :2], views[j, :2])
    meet = (sides.min(axis=1) >= 0) & (sides.max(axis=1) > 0)
    return i[meet], j[meet]


def _classes(detections: Detections) -> NDArray[Any]:
    if detections.attributes is None:
        return detections.labels
    texts = [str(item.get(CLASS_TEXT)) for item in detections.attributes]
    return np.array([f"{label} {text}" for label, text in zip(detections.labels, texts)], np.str_)


def _agree(found: Found, i: Indices, j: Indices, grid: TileGrid) -> NDArray[np.bool_]:
    """Tell which pairs of fragments show the same object in the strip that both of their tiles see."""
    agree = np.zeros(len(i), np.bool_)
    shapes, tiles = shapes_of(found.detections), found.tiles
    _, of = np.unique(np.stack([tiles[i], tiles[j]], axis=1), axis=0, return_inverse=True)
    order = np.argsort(of.reshape(-1), kind="stable")
    # Each fragment is cut once for each neighbour, however many of the neighbour's it meets there.
    for group in np.split(order, np.flatnonzero(np.diff(of.reshape(-1)[order])) + 1) if len(order) else ():
        outers = [grid[int(tile)].outer for tile in (tiles[i[group[0]]], tiles[j[group[0]]])]
        views = np.array([[w.x, w.y, w.right, w.bottom] for w in outers], np.float64)
        agree[group] = _agree_in_strip(shapes, i[group], j[group], views)
    return agree


def _agree_in_strip(shapes: ObjectArray, i: Indices, j: Indices, views: FloatArray) -> NDArray[np.bool_]:
    """Do the same for pairs of the same two tiles, whose views are given."""
    strips = _strips(views[:1], views[1:])
    first, second = np.unique(i), np.unique(j)
    ours, of_ours = _pieces(shapes[first], strips.first)
    theirs, of_theirs = _pieces(shapes[second], strips.second)
    _move(theirs, np.repeat(strips.offset, len(theirs), axis=0))
    wanted = i * len(shapes) + j
    agreed = [np.empty(0, np.intp)]
    a, b = shapely.STRtree(theirs).query(ours) if len(ours) and len(theirs) else (wanted[:0], wanted[:0])
    keys = first[of_ours[a]] * len(shapes) + second[of_theirs[b]]
    is_pair = np.isin(keys, wanted) & _may_be_one(ours, theirs, a, b)
    a, b, keys = a[is_pair], b[is_pair], keys[is_pair]
    for start in range(0, len(a), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        agreed.append(keys[part][_are_one(ours[a[part]], theirs[b[part]], views, has_area=bool(strips.has_area[0]))])
    return np.isin(wanted, np.concatenate(agreed))


def _may_be_one(ours: ObjectArray, theirs: ObjectArray, a: Indices, b: Indices) -> NDArray[np.bool_]:
    """Tell by the bounds of pieces, pair by pair, whether they can have enough in common."""
    p, q = shapely.bounds(ours).reshape(-1, 4)[a], shapely.bounds(theirs).reshape(-1, 4)[b]
    sides = np.minimum(p[:, 2:], q[:, 2:]) - np.maximum(p[:, :2], q[:, :2])
    smaller = np.minimum(shapely.area(ours)[a], shapely.area(theirs)[b])
    may_be: NDArray[np.bool_] = sides.clip(min=0).prod(axis=1) > _SAME * smaller
    return may_be


def _are_one(p: ObjectArray, q: ObjectArray, views: FloatArray, *, has_area: bool) -> NDArray[np.bool_]:
    """Tell which pieces, pair by pair, are the same, or one the end of the other."""
    areas = shapely.area(p), shapely.area(q)
    common, smaller = shapely.area(shapely.intersection(p, q)), np.minimum(*areas)
    is_same: NDArray[np.bool_] = common > _SAME * (areas[0] + areas[1] - common)
    is_first = (areas[0] <= areas[1])[:, None]
    bounds = np.where(is_first, shapely.bounds(p), shapely.bounds(q))
    own, other = np.where(is_first, views[0], views[1]), np.where(is_first, views[1], views[0])
    goes_on = _goes_on(bounds, own, other) & has_area & (common > _SAME * smaller) & ~is_same
    goes_on[goes_on] = _is_thick(np.where(is_first[:, 0], p, q)[goes_on])
    are_one: NDArray[np.bool_] = is_same | goes_on
    return are_one


def views_of(found: Found, grid: TileGrid) -> FloatArray:
    """Give what the tile of each outline sees, (N, 4) in raster pixels."""
    numbers, of = np.unique(found.tiles, return_inverse=True)
    outers = [grid[int(number)].outer for number in numbers]
    return np.array([[w.x, w.y, w.right, w.bottom] for w in outers], np.float64).reshape(-1, 4)[of]


@dataclass(frozen=True, eq=False)
class _Strips:
    """Where two tiles can be compared, pair by pair: in what both see.

    Where their views only meet in a line, the last row of pixels before it is compared with the first one behind.

    Shape:
        first, second (N, 4), the places in the two views; offset (N, 2), from the second place to the first.
    """

    first: FloatArray
    second: FloatArray
    offset: FloatArray

    @cached_property
    def has_area(self) -> NDArray[np.bool_]:
        """Tell which pairs see something in common."""
        has_area: NDArray[np.bool_] = (self.offset == 0).all(axis=1)
        return has_area


def _strips(views: FloatArray, others: FloatArray) -> _Strips:
    common = np.concatenate([np.maximum(views[:, :2], others[:, :2]), np.minimum(views[:, 2:], others[:, 2:])], axis=1)
    first, second, offset = common.copy(), common.copy(), np.zeros((len(common), 2))
    sides = common[:, 2:] - common[:, :2]
    for axis in (0, 1):
        abuts = (sides[:, axis] == 0) & (sides[:, 1 - axis] > 0)
        before, behind = (
            abuts & (views[:, axis + 2] == others[:, axis]),
            abuts & (views[:, axis] == others[:, axis + 2]),
        )
        first[before, axis] -= 1
        second[before, axis + 2] += 1
        first[behind, axis + 2] += 1
        second[behind, axis] -= 1
        offset[:, axis] = np.where(before, -1.0, np.where(behind, 1.0, 0.0))
    return _Strips(first, second, offset)


def _pieces(shapes: ObjectArray, places: FloatArray) -> tuple[ObjectArray, Indices]:
    """Give the connected pieces of each shape inside its place, and the index of the shape that each is of."""
    clipped = shapely.intersection(shapes, shapely.box(*places.T))
    parts, of = shapely.get_parts(clipped, return_index=True)
    inner, outer_of = shapely.get_parts(parts, return_index=True)  # of collections, where a shape also touches
    of = of[outer_of]
    has_area = shapely.area(inner) > 0
    return inner[has_area], of[has_area]


def _move(shapes: ObjectArray, offset: FloatArray) -> None:
    points, of = shapely.get_coordinates(shapes, return_index=True)
    shapely.set_coordinates(shapes, points + offset[of])


def _goes_on(bounds: FloatArray, view: FloatArray, other: FloatArray) -> NDArray[np.bool_]:
    """Tell which pieces end with their own tile's view where the other tile sees on.

    Such a piece must go on in something; what is whole, and small, is no part of something larger.
    """
    low = (bounds[:, :2] <= view[:, :2] + VIEW_EDGE) & (other[:, :2] < view[:, :2])
    high = (bounds[:, 2:] >= view[:, 2:] - VIEW_EDGE) & (other[:, 2:] > view[:, 2:])
    goes_on: NDArray[np.bool_] = np.any(low | high, axis=1)
    return goes_on


def _is_thick(pieces: ObjectArray) -> NDArray[np.bool_]:
    """Tell which pieces are more than the unrest at an outline that just reaches into the other tile's view."""
    is_thick: NDArray[np.bool_] = ~shapely.is_empty(shapely.buffer(pieces, -VIEW_EDGE))
    return is_thick
