from __future__ import annotations

import numpy as np
import pytest
import shapely

from kestrel.inference.detections import make_detections
from kestrel.inference.links import links
from kestrel.inference.merge import Found
from kestrel.inference.tiling import TileGrid, Window

GRID = TileGrid(164, 64, Window(0, 0, 164, 64), 64, 14, 1)  # views: columns 0 to 64, 36 to 100, 72 to 136, 100 to 164
APART = TileGrid(128, 64, Window(0, 0, 128, 64), 64, 0, 1)


def is_linked(
    first: shapely.Geometry, second: shapely.Geometry, grid: TileGrid = GRID, labels: tuple[int, int] = (0, 0),
    tiles: tuple[int, int] = (0, 1), words: tuple[str, str] | None = None,
) -> bool:  # fmt: skip
    shapes = [first, second]
    attributes = None if words is None else [{"ClassText": word} for word in words]
    detections = make_detections(shapely.bounds(shapes), [1, 1], labels, shapes=shapes, attributes=attributes)
    found = Found(detections, np.array(tiles), np.zeros(2, np.int8), np.ones(2, bool))
    answers = {len(links(found.take(np.array(order)), 1, np.arange(2), grid)[0]) for order in ([0, 1], [1, 0])}
    assert 1 == len(answers)  # symmetric
    return answers == {1}


HEDGE = shapely.box(5, 20, 64, 24), shapely.box(36, 20, 100, 24)


def test_what_two_tiles_see_alike_is_one_object() -> None:
    assert is_linked(*HEDGE)


@pytest.mark.parametrize("members", [
    {"labels": (0, 1)}, {"tiles": (0, 0)}, {"words": ("Hedge", "Wall")}, {"tiles": (0, 3)},
])  # fmt: skip
def test_other_classes_the_same_tile_and_tiles_that_see_nothing_in_common_are_never_linked(members: object) -> None:
    assert not is_linked(*HEDGE, **members)  # type: ignore[arg-type]


def test_the_same_word_for_a_class_is_the_same_class() -> None:
    assert is_linked(*HEDGE, words=("Hedge", "Hedge"))


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_neighbours_that_touch_or_nearly_touch_are_never_linked(gap: int) -> None:
    assert not is_linked(shapely.box(5, 10, 64, 20), shapely.box(36, 20 + gap, 100, 30))
    assert not is_linked(shapely.box(30, 10, 50, 20), shapely.box(50 + gap, 10, 60, 20))


def test_a_small_whole_object_is_no_part_of_a_large_one_that_covers_it() -> None:
    large = shapely.box(36, 5, 100, 60)
    assert not is_linked(shapely.box(40, 20, 58, 40), large)


def test_a_ragged_end_goes_on_in_what_covers_it() -> None:
    large = shapely.box(36, 5, 100, 60)
    assert is_linked(shapely.box(5, 10, 64, 30), large)
    assert not is_linked(shapely.box(5, 0, 64, 9), large)  # less than half of it


def test_a_sliver_that_reaches_into_a_neighbour_is_no_end_that_goes_on() -> None:
    large = shapely.box(36, 5, 100, 60)
    assert not is_linked(shapely.box(5, 10, 64, 38).difference(shapely.box(34, 13, 64, 64)), large)
    assert is_linked(shapely.box(5, 10, 64, 38).difference(shapely.box(34, 15, 64, 64)), large)


def test_one_piece_in_common_is_enough() -> None:
    comb = shapely.union_all([shapely.box(5, 0, 10, 60), *(shapely.box(5, y, 64, y + 4) for y in (0, 20, 40))])
    snake = shapely.union_all([shapely.box(36, 40, 90, 44), shapely.box(86, 44, 90, 60), shapely.box(36, 56, 90, 60)])
    assert is_linked(comb, snake)


def test_views_that_only_meet_are_compared_along_the_seam() -> None:
    assert is_linked(shapely.box(5, 10, 64, 20), shapely.box(64, 12, 90, 21), APART)
    assert not is_linked(shapely.box(5, 10, 64, 20), shapely.box(64, 18, 90, 28), APART)
    assert not is_linked(shapely.box(5, 10, 63, 20), shapely.box(64, 10, 90, 20), APART)
    assert not is_linked(shapely.box(5, 10, 64, 60), shapely.box(64, 20, 68, 25), APART)
