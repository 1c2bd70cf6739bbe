from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.detections import Detections, make_detections
from kestrel.inference.merge import Band, Found, Rule, join, overlap_ratio, strongest_first, suppress, suppress_once

Box = tuple[float, float, float, float]
Row = tuple[float, ...]


def greedy(found: Found, rule: Rule) -> list[Row]:
    """Suppress over everything at once, one box after the other."""
    kept: list[int] = []
    d = found.detections
    for i in strongest_first(found):
        if not any(is_duplicate(found, i, j, rule) for j in kept):
            kept.append(i)
    return sorted(row(d, found.tiles, i) for i in kept)


def is_duplicate(found: Found, i: int, j: int, rule: Rule) -> bool:
    d = found.detections
    if not (found.is_open[i] and found.is_open[j]) or d.labels[i] != d.labels[j]:
        return False
    if rule.across_tiles_only and found.tiles[i] == found.tiles[j]:
        return False
    return plain_overlap(d.boxes[i], d.boxes[j]) > rule.max_overlap


def plain_overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def row(d: Detections, tiles: np.ndarray, i: int) -> Row:
    return (*d.boxes[i].tolist(), float(d.scores[i]), int(d.labels[i]), int(tiles[i]))


def rows(found: Found) -> list[Row]:
    return sorted(row(found.detections, found.tiles, i) for i in range(len(found)))


@st.composite
def founds(draw: st.DrawFn, most: int = 40) -> Found:
    """Boxes on a coarse grid of places, sizes and scores, so that touching, containing and tied ones abound."""
    n = draw(st.integers(0, most))
    place, size = st.integers(0, 14), st.sampled_from([0, 1, 2, 3, 4, 6, 30])
    boxes = [
        (x, y, x + w, y + h)
        for x, y, w, h in draw(st.lists(st.tuples(place, place, size, size), min_size=n, max_size=n))
    ]
    column = st.lists(st.integers(0, 4), min_size=n, max_size=n)
    scores, labels, tiles, rank, is_open = (np.array(draw(column), float) for _ in range(5))
    return Found(
        make_detections(np.array(boxes, float), scores / 4, labels == 0), tiles.astype(np.int64),
        (rank % 2).astype(np.int8), is_open > 0,
    )  # fmt: skip


def in_bands(found: Found, cuts: list[int]) -> Iterator[Band]:
    """Hand out the boxes by their tops, each band with the right frontier."""
    tops = found.detections.boxes[:, 1]
    for low, high in zip([-np.inf, *cuts], [*cuts, np.inf]):
        rest = tops[tops >= high]
        yield Band(found.take((tops >= low) & (tops < high)), float(rest.min()) if len(rest) else np.inf)


def in_rows_of_tiles(found: Found, row_of: list[int]) -> Iterator[Band]:
    """Hand out the boxes by rows of tiles that overlap, as real ones do."""
    number = np.array(row_of, int)
    tops = found.detections.boxes[:, 1]
    for index in range(4):
        rest = tops[number > index]
        yield Band(found.take(number == index), float(rest.min()) if len(rest) else np.inf)


rules = st.builds(Rule, st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99, 1.0]), st.booleans())
cut_lists = st.lists(st.integers(0, 14), max_size=6).map(lambda cuts: sorted(set(cuts)))


@settings(max_examples=100, deadline=None)
@given(founds(), rules, cut_lists)
def test_streamed_suppression_equals_greedy_suppression_over_everything(
    found: Found, rule: Rule, cuts: list[int]
) -> None:
    result = join([band.found for band in suppress(in_bands(found, cuts), rule)])
    assert greedy(found, rule) == rows(result)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(founds(), rules, st.data())
def test_boxes_that_reach_up_into_earlier_rows_do_not_change_that(
    found: Found, rule: Rule, data: st.DataObject
) -> None:
    row_of = data.draw(st.lists(st.integers(0, 3), min_size=len(found), max_size=len(found)))
    result = join([band.found for band in suppress(in_rows_of_tiles(found, row_of), rule)])
    assert greedy(found, rule) == rows(result)


@settings(max_examples=50, deadline=None)
@given(founds(), rules, cut_lists, st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(found: Found, rule: Rule, cuts: list[int], random: object) -> None:
    shuffled = np.arange(len(found))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first = join([band.found for band in suppress(in_bands(found, cuts), rule)])
    second = join([band.found for band in suppress(in_bands(found.take(shuffled), cuts), rule)])
    assert rows(first) == rows(second)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(founds(), rules, cut_lists)
def test_no_later_band_holds_a_box_above_the_frontier(found: Found, rule: Rule, cuts: list[int]) -> None:
    bands = list(suppress(in_bands(found, cuts), rule))
    for index, band in enumerate(bands):
        later = join([other.found for other in bands[index + 1 :]]).detections.boxes[:, 1]
        assert later.min(initial=np.inf) >= band.frontier


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(founds(), rules, rules, cut_lists)
def test_two_suppressions_in_a_row_can_be_streamed(found: Found, rule: Rule, second: Rule, cuts: list[int]) -> None:
    once = join([band.found for band in suppress([Band(found, np.inf)], rule)])
    streamed = join([band.found for band in suppress(suppress(in_bands(found, cuts), rule), second)])
    assert greedy(once, second) == rows(streamed)


def strip(n_rows: int) -> Found:
    """One object in each row, seen twice."""
    y = np.repeat(np.arange(n_rows) * 10.0, 2)
    boxes = np.stack([np.zeros_like(y), y, np.full_like(y, 8), y + 8], axis=1)
    n = len(boxes)
    return Found(make_detections(boxes, np.tile([0.9, 0.8], n_rows), np.zeros(n)), np.zeros(n, np.int64),
                 np.zeros(n, np.int8), np.ones(n, np.bool_))  # fmt: skip


def test_settled_objects_leave_a_long_strip_as_soon_as_the_sweep_has_passed_them() -> None:
    n_rows = 200
    taken: list[int] = []

    def watched() -> Iterator[Band]:
        for band in in_bands(strip(n_rows), [10 * row for row in range(1, n_rows)]):
            taken.append(len(band.found))
            yield band

    n_out = 0
    for band in suppress(watched(), Rule(0.5)):
        n_out += len(band.found)
        assert n_out == len(taken)


@pytest.mark.parametrize(("overlap", "expected"), [(0.5, [0, 1]), (0.0, [1, 1])])
def test_a_box_waits_for_the_next_row_as_long_as_that_can_overlap_it_at_all(
    overlap: float, expected: list[int]
) -> None:
    boxes = np.array([[0, 0, 8, 8], [0, 8 - overlap, 8, 16]], float)
    found = Found(
        make_detections(boxes, np.array([0.5, 0.9]), np.zeros(2)), np.arange(2), np.zeros(2, np.int8), np.ones(2, bool)
    )
    bands = [Band(found.take(np.array([0])), 8 - overlap), Band(found.take(np.array([1])), np.inf)]
    assert expected == [len(band.found) for band in suppress(bands, Rule(0.0))]


def test_a_chain_across_rows_waits_for_the_box_that_decides_it() -> None:
    # Each box overlaps the next, stronger one: the last decides them all.
    n = 6
    y = np.arange(n) * 4.0
    boxes = np.stack([np.zeros(n), y, np.full(n, 8.0), y + 8], axis=1)
    found = Found(make_detections(boxes, np.linspace(0.4, 0.9, n), np.zeros(n)), np.zeros(n, np.int64),
                  np.zeros(n, np.int8), np.ones(n, np.bool_))  # fmt: skip
    sizes = [len(band.found) for band in suppress(in_bands(found, [4 * i for i in range(1, n)]), Rule(0.3))]
    assert [0, 0, 0, 0, 0, 3] == sizes


def one_object_from_two_tiles(scores: tuple[float, float], rank: tuple[int, int], tiles: tuple[int, int]) -> Found:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10]], float)
    return Found(make_detections(boxes, np.array(scores), np.zeros(2)), np.array(tiles, np.int64),
                 np.array(rank, np.int8), np.ones(2, np.bool_))  # fmt: skip


def test_the_owning_tile_wins_over_a_stronger_box_that_only_the_tolerance_let_in() -> None:
    found = one_object_from_two_tiles((0.9, 0.6), (1, 0), (0, 1))
    (band,) = suppress([Band(found, np.inf)], Rule(0.5, across_tiles_only=True))
    assert [1] == band.found.tiles.tolist()


def test_a_network_that_suppresses_inside_keeps_its_overlapping_boxes_of_one_tile() -> None:
    found = one_object_from_two_tiles((0.9, 0.6), (0, 0), (3, 3))
    (band,) = suppress([Band(found, np.inf)], Rule(0.5, across_tiles_only=True))
    assert 2 == len(band.found)


@given(founds(20), founds(20))
def test_the_overlap_of_boxes_is_the_share_of_their_union(a: Found, b: Found) -> None:
    n = min(len(a), len(b))
    boxes, others = a.detections.boxes[:n], b.detections.boxes[:n]
    expected = [plain_overlap(x, y) for x, y in zip(boxes, others)]
    assert expected == pytest.approx(overlap_ratio(boxes, others).tolist())


@settings(deadline=None)
@given(founds(25), st.sampled_from([0.0, 0.3, 0.5]))
def test_suppressing_once_gives_the_strongest_first(found: Found, max_overlap: float) -> None:
    d = found.detections
    n = len(d)
    alone = Found(d, np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, np.bool_))
    result = suppress_once(d, max_overlap)
    assert greedy(alone, Rule(max_overlap)) == sorted(row(result, np.zeros(len(result)), i) for i in range(len(result)))
    assert sorted(result.scores.tolist(), reverse=True) == result.scores.tolist()


def outlines(*shapes: shapely.Geometry) -> Detections:
    n = len(shapes)
    return make_detections(shapely.bounds(shapes), np.linspace(1, 0.5, n), np.zeros(n), shapes=shapes)


def test_of_outlines_the_areas_count_and_not_the_boxes() -> None:
    frame = shapely.box(0, 0, 20, 20).difference(shapely.box(2, 2, 18, 18))
    assert 2 == len(suppress_once(outlines(frame, shapely.box(1, 1, 19, 19)), 0.5))
    assert 1 == len(
        suppress_once(outlines(frame, shapely.box(0, 0, 20, 20).difference(shapely.box(3, 3, 18, 18))), 0.5)
    )


def test_points_never_suppress_each_other() -> None:
    assert 2 == len(suppress_once(outlines(shapely.Point(3, 3), shapely.Point(3, 3)), 0.0))


def across(distance: float, texts: tuple[str | None, str | None] = (None, None)) -> int:
    """Count what is left of two points of different tiles."""
    shapes = [shapely.Point(10, 10), shapely.Point(10 + distance, 10)]
    detections = make_detections(shapely.bounds(shapes), [0.9, 0.8], [0, 0], shapes=shapes,
                                 attributes=[{"ClassText": text} for text in texts])  # fmt: skip
    found = Found(detections, np.array([0, 1]), np.zeros(2, np.int8), np.ones(2, bool))
    (band,) = suppress([Band(found, np.inf)], Rule(0.5, across_tiles_only=True))
    return len(band.found)


def test_a_point_that_two_tiles_marked_nearly_alike_is_one() -> None:
    assert [1, 1, 2] == [across(0), across(2.9), across(3.1)]


def test_what_a_program_calls_by_different_names_are_different_objects() -> None:
    assert [1, 2] == [across(1, ("Car", "Car")), across(1, ("Car", "Bus"))]


def test_a_point_waits_for_the_row_below_in_which_its_double_may_be() -> None:
    def band(y: float, tile: int, frontier: float) -> Band:
        detections = make_detections([[5, y, 5, y]], [0.9], [0], shapes=[shapely.Point(5, y)])
        return Band(Found(detections, np.array([tile]), np.zeros(1, np.int8), np.ones(1, bool)), frontier)

    bands = [band(93.0, 0, 93.0), band(93.0, 4, np.inf)]
    assert 1 == sum(len(found.found) for found in suppress(bands, Rule(0.5, across_tiles_only=True)))
    bands = [band(93.0, 0, 95.5), band(95.5, 4, np.inf)]
    assert 1 == sum(len(found.found) for found in suppress(bands, Rule(0.5, across_tiles_only=True)))
