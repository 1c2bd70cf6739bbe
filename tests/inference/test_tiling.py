from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.tiling import TileGrid, Window, align_up

LARGEST = 2**31 - 1


@st.composite
def grids(draw: st.DrawFn, most: int = 400) -> TileGrid:
    width, height = draw(st.integers(1, most)), draw(st.integers(1, most))
    x, y = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    area = Window(x, y, draw(st.integers(1, width - x)), draw(st.integers(1, height - y)))
    stride = draw(st.sampled_from([1, 3, 8, 16, 32]))
    n_padding = draw(st.integers(0, 3))
    tile_size = stride * (2 * n_padding + draw(st.integers(1, 6)))
    # Few pixels a step would make many thousand tiles.
    least = -(-max(area.width, area.height) // 40)
    tile_size = max(tile_size, align_up(least, stride) + 2 * n_padding * stride)
    return TileGrid(width, height, area, tile_size, n_padding * stride, stride)


@given(grids())
def test_inner_windows_partition_the_area(grid: TileGrid) -> None:
    owners = np.zeros((grid.height, grid.width), int)
    for tile in grid:
        assert tile.inner.width > 0 and tile.inner.height > 0
        owners[tile.inner.y : tile.inner.bottom, tile.inner.x : tile.inner.right] += 1
    expected = np.zeros_like(owners)
    expected[grid.area.y : grid.area.bottom, grid.area.x : grid.area.right] = 1
    assert np.array_equal(expected, owners)


@given(grids())
def test_outer_windows_begin_on_the_stride_and_stay_inside_the_raster_but_for_a_part_of_a_stride(
    grid: TileGrid,
) -> None:
    for tile in grid:
        outer = tile.outer
        assert (outer.width, outer.height) == (grid.tile_size, grid.tile_size)
        assert (outer.x % grid.stride, outer.y % grid.stride) == (0, 0)
        assert min(outer.x, outer.y) >= 0
        assert outer.x == 0 or outer.right <= align_up(grid.width, grid.stride)
        assert outer.y == 0 or outer.bottom <= align_up(grid.height, grid.stride)


@given(grids())
def test_a_tile_sees_the_padding_around_all_that_it_may_claim_where_the_raster_goes_on(grid: TileGrid) -> None:
    for tile in grid:
        inner, outer = tile.inner, tile.outer
        assert outer.x <= max(0, inner.x - grid.padding)
        assert outer.y <= max(0, inner.y - grid.padding)
        assert outer.right >= min(grid.width, inner.right + grid.padding)
        assert outer.bottom >= min(grid.height, inner.bottom + grid.padding)


@given(grids())
def test_the_grid_has_no_tile_more_than_its_steps_ask_for(grid: TileGrid) -> None:
    for axis in (grid.columns, grid.rows):
        n_needed = -(-(axis.stop - axis.start) // axis.step)
        assert len(axis) <= n_needed + 1


@given(grids(), st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)), max_size=30))
def test_every_anchor_in_the_area_has_exactly_one_owner(grid: TileGrid, shares: list[tuple[float, float]]) -> None:
    area = grid.area
    corners = [(x, y) for tile in grid for x in (tile.inner.x, tile.inner.right - 1)
               for y in (tile.inner.y, tile.inner.bottom - 1)]  # fmt: skip
    inside = [(area.x + int(x * area.width), area.y + int(y * area.height) + 0.5) for x, y in shares]
    anchors = np.array(corners + inside, float)
    owners = sum(grid.owns(tile, anchors).astype(int) for tile in grid)
    assert np.array_equal(np.ones(len(anchors), int), owners)


@given(grids(), st.tuples(st.floats(-50, 500), st.floats(-50, 500)))
def test_an_anchor_outside_the_area_has_no_owner_unless_it_leans_out_of_the_raster(
    grid: TileGrid, anchor: tuple[float, float]
) -> None:
    def is_claimed(value: float, start: int, stop: int, limit: int) -> bool:
        return (value >= start or start == 0) and (value < stop or stop == limit)

    area = grid.area
    expected = is_claimed(anchor[0], area.x, area.right, grid.width) and is_claimed(
        anchor[1], area.y, area.bottom, grid.height
    )
    n_owners = sum(int(grid.owns(tile, np.array([anchor]))[0]) for tile in grid)
    assert int(expected) == n_owners


@given(grids(), st.data())
def test_a_tolerance_widens_only_towards_neighbours(grid: TileGrid, data: st.DataObject) -> None:
    tile = grid[data.draw(st.integers(0, len(grid) - 1))]
    inner, area = tile.inner, grid.area
    middle = inner.y + inner.height / 2
    left, right = np.array([[inner.x - 1.0, middle]]), np.array([[inner.right + 1.0, middle]])
    assert bool(grid.owns(tile, left, 2.0)[0]) == (inner.x > area.x or inner.x == 0)
    assert bool(grid.owns(tile, right, 2.0)[0]) == (inner.right < area.right or inner.right == grid.width)


@given(grids(), st.data())
def test_the_distance_from_a_seam_counts_shared_edges_only(grid: TileGrid, data: st.DataObject) -> None:
    tile = grid[data.draw(st.integers(0, len(grid) - 1))]
    inner, area = tile.inner, grid.area
    x, y = inner.x + inner.width / 4, inner.y + inner.height / 4
    shared = [abs(place - edge) for place, edge, end in (
        (x, inner.x, area.x), (x, inner.right, area.right), (y, inner.y, area.y), (y, inner.bottom, area.bottom)
    ) if edge != end]  # fmt: skip
    assert min(shared, default=np.inf) == grid.seam_distance(tile, np.array([[x, y]]))[0]


@given(grids())
def test_the_grid_is_a_sequence_of_its_tiles(grid: TileGrid) -> None:
    tiles = list(grid)
    assert len(grid) == len(tiles)
    assert [grid[number] for number in range(len(grid))] == tiles
    assert list(range(len(grid))) == [tile.number for tile in tiles]
    for number in (-1, len(grid)):
        with pytest.raises(IndexError):
            grid[number]


@pytest.mark.parametrize(("tile_size", "padding", "stride"), [(512, 64, 32), (64, 24, 8), (3, 1, 1)])
def test_the_largest_raster_of_gdal_is_indexed_without_a_list(tile_size: int, padding: int, stride: int) -> None:
    grid = TileGrid(LARGEST, LARGEST, Window(0, 0, LARGEST, LARGEST), tile_size, padding, stride)
    last = grid[len(grid) - 1]
    assert (LARGEST, LARGEST) == (last.inner.right, last.inner.bottom)
    assert align_up(LARGEST, stride) == last.outer.right == last.outer.bottom
    n_columns = len(grid.columns)
    middle = len(grid.rows) // 2 * n_columns + n_columns // 2
    tile, right, below = grid[middle], grid[middle + 1], grid[middle + n_columns]
    assert (tile.inner.right, tile.inner.bottom) == (right.inner.x, below.inner.y)
    assert np.array_equal([False, True], grid.owns(last, np.array([[0.0, 0.0], [LARGEST - 0.5, LARGEST - 0.5]])))


def test_one_tile_holds_a_raster_that_is_smaller_than_it() -> None:
    grid = TileGrid(30, 20, Window(5, 5, 10, 10), 64, 16, 8)
    (tile,) = grid
    assert (Window(5, 5, 10, 10), Window(0, 0, 64, 64)) == (tile.inner, tile.outer)


@settings(max_examples=50)
@given(st.integers(0, 10**12), st.integers(1, 1000))
def test_aligning_up_gives_the_next_multiple(value: int, stride: int) -> None:
    result = align_up(value, stride)
    assert result % stride == 0
    assert 0 <= result - value < stride


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Window(5, 5, 10, 10), Window(5, 5, 5, 5)),
        (Window(-5, -5, 100, 100), Window(0, 0, 10, 10)),
        (Window(10, 0, 5, 5), Window(10, 0, 0, 5)),
        (Window(40, 40, 5, 5), Window(40, 40, 0, 0)),
    ],
)
def test_windows_intersect_in_their_common_part(other: Window, expected: Window) -> None:
    assert expected == Window(0, 0, 10, 10).intersect(other)


def test_a_box_reaches_the_end_of_the_view_only_where_the_raster_goes_on() -> None:
    grid = TileGrid(300, 200, Window(0, 0, 300, 200), 64, 16, 8)
    first, inner = grid[0], grid[len(grid.columns) + 1]
    boxes = np.array([[0, 0, 10, 10], [30, 30, 62, 40], [30, 30, 61, 61], [20, 20, 30, 62.5]], float)
    assert [False, True, False, True] == grid.reaches_end_of_view(first, boxes).tolist()
    moved = boxes + np.tile([inner.outer.x, inner.outer.y], 2)
    assert [True, True, False, True] == grid.reaches_end_of_view(inner, moved).tolist()


@given(grids())
def test_blocks_that_hang_over_have_all_of_their_padding(grid: TileGrid) -> None:
    free = replace(grid, hangs_over=True)
    owners = np.zeros((grid.height, grid.width), int)
    for tile in free:
        owners[tile.inner.y : tile.inner.bottom, tile.inner.x : tile.inner.right] += 1
        assert (tile.inner.x - grid.padding, tile.inner.y - grid.padding) == (tile.outer.x, tile.outer.y)
        assert tile.inner.right + grid.padding <= tile.outer.right
    assert owners.sum() == grid.area.width * grid.area.height
    assert owners.max() == 1


@pytest.mark.parametrize("width", [200, 224, 255, 256])
def test_a_raster_that_a_tile_sees_whole_is_one_tile_however_much_of_it_is_padding(width: int) -> None:
    grid = TileGrid(width, 400, Window(0, 0, width, 400), 416, 128, 32, is_cropped=True)
    assert 1 == len(grid)
    assert Window(0, 0, width, 400) == grid[0].inner
