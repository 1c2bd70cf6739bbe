"""Joining: outlines that the edges of tiles cut become the outlines of whole objects.

A tile keeps what has pixels in its inner window (`touches_inner`). An object that lies across a seam is then kept by
several tiles, whole by some and cut by the ends of their views by others: fragments. Two fragments of one class are
linked when, in the strip that both tiles see, a connected piece of the one is a piece of the other as well; what merely
lies near the seam, or touches, has no pixels in common and is never linked. Linked fragments are one object:

- Each fragment counts in its own tile's inner window, and wherever no other tile of the object has a say. These shares
  overlap nowhere and fit together exactly; their union is the object. Why nothing is lost: two neighbouring pixels of
  an object in two inner windows lie in both views, in one piece of the strip, so their fragments are linked.
- Where one tile saw the whole object, and the union says the same, its outline is taken as it is.

Components of links are a property of the set: the order of tiles does not matter. The sweep takes the rows of tiles
from top to bottom, and hands an object out once no later row reaches it, so memory holds what is open at the sweep
line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import shapely
from numpy.typing import NDArray

from .detections import FloatArray, ObjectArray, make_detections, of_dimension, shapes_of
from .links import links, views_of
from .merge import Band, Found, join
from .overlap import Indices
from .tiling import VIEW_EDGE, Tile, TileGrid

_WHOLE = 0.75
"""What one tile saw whole stands for the object when its intersection over union with the union is above this."""
_PRECISION = 2.0**-12
"""Pixels to which shares are snapped: no hair is left between two whose common edge was rounded differently."""
_LEAST_PART = 1.0
"""Square pixels; smaller parts are crumbs of the disagreement of two tiles about the outline at a seam."""
_FAR = 1e7


def touches_inner(tile: Tile, grid: TileGrid, shapes: ObjectArray) -> NDArray[np.bool_]:
    """Tell which outlines have pixels in the tile's inner window, or beyond the raster's edge beside it.

    Shape:
        shapes (N,) polygons in raster pixels; gives (N,).
    """
    window = shapely.box(*_claim(tile, grid))
    result: NDArray[np.bool_] = shapely.area(shapely.intersection(shapes, window)) > 0
    return result


def _claim(tile: Tile, grid: TileGrid) -> tuple[float, float, float, float]:
    """Give the inner window; at the raster's edges with what lies beyond, for outlines that lean out."""
    inner = tile.inner
    return (
        inner.x if inner.x > 0 else -_FAR,
        inner.y if inner.y > 0 else -_FAR,
        inner.right if inner.right < grid.width else _FAR,
        inner.bottom if inner.bottom < grid.height else _FAR,
    )


@dataclass(frozen=True, eq=False)
class _Fragments:
    """What the tiles saw, on its way through the sweep.

    Shape:
        found of length N; is_whole (N,) bool, it ends inside its tile's view; component (N,) int64, equal for the
        fragments of one object.
    """

    found: Found
    is_whole: NDArray[np.bool_]
    component: NDArray[np.int64]

    def take(self, index: NDArray[np.bool_] | Indices) -> _Fragments:
        """Give a part."""
        return _Fragments(self.found.take(index), self.is_whole[index], self.component[index])

    def __add__(self, other: _Fragments) -> _Fragments:
        return _Fragments(
            join([self.found, other.found]),
            np.concatenate([self.is_whole, other.is_whole]),
            np.concatenate([self.component, other.component]),
        )


def join_fragments(bands: Iterable[Band], grid: TileGrid, tolerance: float, *, drops_cut: bool) -> Iterator[Band]:
    """Join fragments over all bands, from top to bottom.

    Args:
        bands: The rows of tiles in order; detections with outlines.
        grid: The tiles.
        tolerance: Pixels from a seam at which tiles may disagree about which of them an object belongs to.
        drops_cut: Drop what ends with its tile's view and no other tile goes on with.

    Yields:
        Bands of whole objects, with the frontier of what is still to come. Objects that lie across a seam are open.
    """
    n_seen = 0
    live = _Fragments(join([]), np.empty(0, np.bool_), np.empty(0, np.int64))
    for band in bands:
        n = len(band.found)
        fresh = _Fragments(band.found, _is_whole(band.found, grid), np.arange(n_seen, n_seen + n, dtype=np.int64))
        n_seen += n
        live = _linked(live, fresh, grid)
        is_open = _reaches(live, band.frontier)
        yield Band(_objects(live.take(~is_open), grid, tolerance, drops_cut), _top(live.take(is_open), band.frontier))
        live = live.take(is_open)


def _top(live: _Fragments, frontier: float) -> float:
    tops = live.found.detections.boxes[:, 1]
    return min(frontier, float(tops.min())) if len(tops) else frontier


def _reaches(live: _Fragments, frontier: float) -> NDArray[np.bool_]:
    """Tell which fragments are of an object that a later row could still add to."""
    _, of = np.unique(live.component, return_inverse=True)
    bottoms = np.full(len(of), -np.inf)
    np.maximum.at(bottoms, of, live.found.detections.boxes[:, 3])
    reaches: NDArray[np.bool_] = bottoms[of] >= frontier
    return reaches


def _is_whole(found: Found, grid: TileGrid) -> NDArray[np.bool_]:
    is_whole = np.ones(len(found), np.bool_)
    for number in np.unique(found.tiles):
        of_tile = found.tiles == number
        is_whole[of_tile] = ~grid.reaches_end_of_view(grid[int(number)], found.detections.boxes[of_tile])
    return is_whole


def _linked(live: _Fragments, fresh: _Fragments, grid: TileGrid) -> _Fragments:
    """Add fragments, and give those of one object the same component."""
    n_live, both = len(live.component), live + fresh
    i, j = links(both.found, n_live, both.component, grid)
    return replace(both, component=_united(both.component, i, j))


def _united(component: NDArray[np.int64], i: Indices, j: Indices) -> NDArray[np.int64]:
    """Unite the components of linked fragments; each is called by its smallest number."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := parent.get(number, number)) != number:
            parent[number] = number = parent.get(above, above)
        return number

    for a, b in zip(component[i].tolist(), component[j].tolist()):
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    renamed = {number: root(number) for number in parent}
    return np.array([renamed.get(number, number) for number in component.tolist()], np.int64)


def _objects(fragments: _Fragments, grid: TileGrid, tolerance: float, drops_cut: bool) -> Found:
    """Make objects of fragments: those that stand alone as they are, the others joined."""
    _, of, counts = np.unique(fragments.component, return_inverse=True, return_counts=True)
    alone = fragments.take(counts[of] == 1)
    order = np.argsort(of, kind="stable")
    groups = np.split(order, np.cumsum(counts)[:-1])
    joined = [_joined(fragments.take(group), grid) for group in groups if len(group) > 1]
    return join([_alone(alone, grid, tolerance, drops_cut), *(item for item in joined if item is not None)])


def _alone(fragments: _Fragments, grid: TileGrid, tolerance: float, drops_cut: bool) -> Found:
    """Keep what belongs to its tile: where only one of two tiles saw something, it must be the one that sees better."""
    found, n = fragments.found, len(fragments.found)
    is_owned, reaches_out = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    for number in np.unique(found.tiles):
        tile, of_tile = grid[int(number)], found.tiles == number
        is_owned[of_tile] = grid.owns(tile, found.detections.anchors[of_tile], tolerance)
        low, high = np.array(_claim(tile, grid)).reshape(2, 2)
        boxes = found.detections.boxes[of_tile]
        reaches_out[of_tile] = ((boxes[:, :2] < low) | (boxes[:, 2:] > high)).any(axis=1)
    # What ends with the inner window has not been denied by anyone: there is no padding.
    is_denied = ~fragments.is_whole & reaches_out & drops_cut
    detections = replace(found.detections, boxes=shapely.bounds(shapes_of(found.detections)).reshape(-1, 4))
    kept = replace(found, detections=detections, is_open=reaches_out, is_cut=~fragments.is_whole)
    return kept.take(is_owned & ~is_denied)


def _joined(fragments: _Fragments, grid: TileGrid) -> Found | None:
    """Make one object; None where it lies outside the searched area."""
    found, shapes = fragments.found, shapes_of(fragments.found.detections)
    shares = _shares(found, shapes, grid)
    areas = shapely.area(shares)
    shape, main = _union(shares), int(areas.argmax())
    score = float(np.average(found.detections.scores.astype(np.float64), weights=areas))
    is_cut = _ends_with_view(found, shares, shapely.bounds(shape), grid)
    best = _best_whole(fragments, grid)
    if best is not None and _overlap(shapes[best], shape) > _WHOLE:
        shape, main, score, is_cut = shapes[best], best, float(found.detections.scores[best]), False
    bounds = shapely.bounds(shape)[None]
    whole = found.detections.take(np.array([main]))
    item = make_detections(bounds, np.array([score]), whole.labels, shapes=[shape], attributes=whole.attributes)
    if not grid.owns(Tile(0, grid.area, grid.area), item.anchors)[0]:
        return None
    return Found(item, found.tiles[[main]], np.zeros(1, np.int8), np.ones(1, np.bool_), np.array([is_cut]))


def _shares(found: Found, shapes: ObjectArray, grid: TileGrid) -> ObjectArray:
    """Give what each fragment says that no other tile of the object knows better."""
    numbers = np.unique(found.tiles)
    windows = shapely.box(*np.array([_claim(grid[int(number)], grid) for number in numbers], np.float64).T)
    shares = shapes.copy()
    of, other = shapely.STRtree(windows).query(shapes, predicate="intersects")
    is_other = numbers[other] != found.tiles[of]
    of, other = of[is_other], other[is_other]
    for index in np.unique(of):
        rest = shapely.union_all(windows[other[of == index]])
        shares[index] = shapely.difference(shapes[index], rest, grid_size=_PRECISION)
    return shares


def _union(shares: ObjectArray) -> shapely.Geometry:
    """Dissolve: no seam remains, neither as a gap nor as a corner on a straight edge."""
    union = of_dimension(shapely.union_all(shares, grid_size=_PRECISION), 2)
    parts = shapely.get_parts(union)
    is_large = shapely.area(parts) >= _LEAST_PART
    if is_large.any() and not is_large.all():
        union = of_dimension(shapely.multipolygons(parts[is_large]), 2)
    # A ring's first point stays where it is: the lowest left one is a true corner.
    return shapely.simplify(shapely.normalize(union), 0)


def _best_whole(fragments: _Fragments, grid: TileGrid) -> int | None:
    """Choose among the tiles that saw the object whole: the one that it belongs to, else the surest."""
    found, ranks = fragments.found, []
    for index in np.flatnonzero(fragments.is_whole).tolist():
        number, anchor = int(found.tiles[index]), found.detections.anchors[[index]]
        is_owned = bool(grid.owns(grid[number], anchor)[0])
        ranks.append((not is_owned, -float(found.detections.scores[index]), number, index))
    return min(ranks)[-1] if ranks else None


def _overlap(shape: shapely.Geometry, other: shapely.Geometry) -> float:
    common = shapely.area(shapely.intersection(shape, other))
    return float(common / (shape.area + other.area - common))


def _ends_with_view(found: Found, shares: ObjectArray, bounds: FloatArray, grid: TileGrid) -> bool:
    """Tell whether a share ends with its tile's view, and the object goes no farther either."""
    outer = views_of(found, grid)
    low, high = outer[:, :2], outer[:, 2:]
    own = shapely.bounds(shares)
    ends_low = (own[:, :2] <= low + VIEW_EDGE) & (low > 0) & (bounds[:2] >= low - VIEW_EDGE)
    ends_high = (own[:, 2:] >= high - VIEW_EDGE) & (high < [grid.width, grid.height]) & (bounds[2:] <= high + VIEW_EDGE)
    return bool((ends_low | ends_high).any())
