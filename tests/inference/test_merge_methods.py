"""Every way of merging against plain loops over everything, however the set is cut, ordered or limited in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference import candidates, greedy, merge, rivals, soft
from kestrel.inference.detections import Detections, make_detections, shapes_of
from kestrel.inference.merge import Band, Found, Rule, join, rule_of, suppress
from kestrel.tests.fixtures.onnx_graphs import random_network
from kestrel.tests.fixtures.rasters import noise, write_raster
from kestrel.tests.fixtures.runs import Result, run, write_definition

pytestmark = pytest.mark.slow

METHODS = ["nms", "nmm", "wbf", "soft-nms"]
THRESHOLD = 0.2137

Row = tuple[float, ...]


def plain_overlap(a: shapely.Geometry, b: shapely.Geometry, metric: str) -> float:
    common = a.intersection(b).area
    whole = a.union(b).area if metric == "iou" else min(a.area, b.area)
    return min(1.0, common / whole) if whole > 0 else 0.0


def by_strength(found: Found) -> list[int]:
    d, shapes = found.detections, shapes_of(found.detections)

    def key(i: int) -> tuple[object, ...]:
        x0, y0, x1, y1 = d.boxes[i]
        return -d.scores[i], y0, x0, y1, x1, d.labels[i], found.tiles[i], shapes[i].wkb

    return sorted(range(len(found)), key=key)


def overlaps_of(found: Found, rule: Rule) -> dict[tuple[int, int], float]:
    """Give the overlap of each pair that is above the limit, both ways round."""
    d, shapes = found.detections, shapes_of(found.detections)
    pairs = {}
    for i in range(len(found)):
        for j in range(i):
            if rule.class_agnostic or d.labels[i] == d.labels[j]:
                overlap = plain_overlap(shapes[i], shapes[j], rule.metric)
                if overlap > rule.max_overlap:
                    pairs[i, j] = pairs[j, i] = overlap
    return pairs


def expected(found: Found, rule: Rule) -> list[Row]:
    """Merge with plain loops over everything at once."""
    pairs, order = overlaps_of(found, rule), by_strength(found)
    if rule.method == "soft-nms":
        return softly(found, rule, pairs, order)
    clusters: dict[int, list[int]] = {}
    for i in order:
        head = next((j for j in clusters if (i, j) in pairs), None)
        clusters.setdefault(i if head is None else head, []).append(i)
    d = found.detections
    return sorted(
        row(*of_cluster(d, members, rule.method), d.scores[head], d.labels[head], found.tiles[head])
        for head, members in clusters.items()
    )


def of_cluster(d: Detections, members: list[int], method: str) -> tuple[np.ndarray, float]:
    """Give box and area of what a cluster, the strongest first, becomes."""
    shapes, boxes, scores = shapes_of(d)[members], d.boxes[members], d.scores[members].astype(float)
    if method == "nmm" and len(members) > 1:
        union = shapely.union_all(shapes)
        bounds = shapely.bounds(union)
        return bounds, union.area if d.shapes is not None else shapely.box(*bounds).area
    if method == "wbf" and d.shapes is None and scores.sum() > 0:
        box = sum(box * score for box, score in zip(boxes, scores)) / scores.sum()
        return box, shapely.box(*box).area
    return boxes[0], shapes[0].area


def softly(found: Found, rule: Rule, pairs: dict[tuple[int, int], float], order: list[int]) -> list[Row]:
    d, place = found.detections, {i: k for k, i in enumerate(order)}
    shapes = shapes_of(d)
    score = {i: float(d.scores[i]) for i in order}
    kept = []
    while score:
        best = max(score, key=lambda i: (round(score[i], 9), -place[i]))
        kept.append(row(d.boxes[best], shapes[best].area, score.pop(best), d.labels[best], found.tiles[best]))
        for i in [i for i in score if (best, i) in pairs]:
            score[i] *= 1 - pairs[best, i]
            if score[i] <= rule.threshold:
                del score[i]
    return sorted(kept)


def row(box: np.ndarray, area: float, score: float, label: int, tile: int) -> Row:
    return (int(tile), int(label), *np.round(box, 5).tolist(), round(float(area), 5), round(float(score), 5))


def actual(bands: Iterator[Band], rule: Rule) -> list[Row]:
    found = join([band.found for band in suppress(bands, rule)])
    d, shapes = found.detections, shapes_of(found.detections)
    return sorted(row(d.boxes[i], shapes[i].area, d.scores[i], d.labels[i], found.tiles[i]) for i in range(len(d)))


def same(first: list[Row], second: list[Row]) -> bool:
    return len(first) == len(second) and np.allclose(np.array(first), np.array(second), rtol=0, atol=2e-5)


KINDS = ["boxes", "rotated", "outlines"]


@st.composite
def scenes(draw: st.DrawFn, kind: str, most: int = 25) -> Found:
    """Objects that overlap much, some of them several times, some tied, some very large or empty."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, is_tied, span = draw(st.integers(0, most)), draw(st.booleans()), draw(st.sampled_from([3, 12, 40]))
    x, y = random.uniform(0, span, (2, n))
    w, h = random.choice([1, 3, 4, 6, 30], (2, n)) * random.uniform(0.8, 1.2, (2, n))
    if is_tied:
        x, y, w, h = (np.round(values) for values in (x, y, w, h))
    if kind == "boxes":
        w[random.random(n) < 0.1] = 0
    copies = random.integers(0, max(n, 1), n // 3)
    x[: len(copies)], y[: len(copies)], w[: len(copies)], h[: len(copies)] = (v[copies] for v in (x, y, w, h))
    shapes = np.array([shapely.box(*values) for values in zip(x, y, x + w, y + h)], object)
    if kind != "boxes":
        angles = random.choice([0, 30, 45, 90, 91.5], n) if is_tied else random.uniform(0, 180, n)
        shapes = np.array([changed(shape, angle, kind) for shape, angle in zip(shapes, angles)], object)
    scores = random.choice([0.3, 0.5, 0.9], n) if is_tied else random.uniform(0.22, 1, n)
    boxes = shapely.bounds(shapes).reshape(-1, 4) if n else np.empty((0, 4))
    d = make_detections(boxes, scores, random.integers(0, 2, n), shapes=None if kind == "boxes" or not n else shapes)
    tiles = random.integers(0, 5, n)
    return Found(d, tiles, np.zeros(n, np.int8), np.ones(n, np.bool_))


def changed(shape: shapely.Geometry, angle: float, kind: str) -> shapely.Geometry:
    """Turn a rectangle; as an outline it has a hole, and a corner less."""
    if kind == "outlines":
        x0, y0, x1, y1 = shape.bounds
        w, h = (x1 - x0) / 4, (y1 - y0) / 4
        shape = shapely.Polygon([(x0, y0), (x1, y0), (x1, y1 - h), (x1 - w, y1), (x0, y1)])
        shape = shape.difference(shapely.box(x0 + w, y0 + h, x0 + 2 * w, y0 + 2 * h))
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    centre = np.array(shape.centroid.coords[0])
    return shapely.transform(shape, lambda points: (points - centre) @ np.array([[c, s], [-s, c]]) + centre)


def rules(method: str) -> st.SearchStrategy[Rule]:
    """Give limits that no overlap of small whole numbers hits."""
    return st.builds(
        Rule, st.sampled_from([0.01, 0.1003, 0.3107, 0.4703, 0.8303, 1.0]), metric=st.sampled_from(["iou", "ios"]),
        class_agnostic=st.booleans(), method=st.just(method), threshold=st.just(THRESHOLD),
    )  # fmt: skip


def cut(found: Found, cuts: list[float]) -> Iterator[Band]:
    """Hand out objects by their tops, the last first in each band."""
    tops = found.detections.boxes[:, 1]
    for low, high in zip([-np.inf, *cuts], [*cuts, np.inf]):
        part = np.flatnonzero((tops >= low) & (tops < high))[::-1]
        yield Band(found.take(part), float(tops[tops >= high].min(initial=np.inf)))


cut_lists = st.lists(st.floats(-3, 40), max_size=6).map(sorted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_merging_equals_plain_loops_over_everything(kind: str, method: str, data: st.DataObject) -> None:
    found, rule, cuts = data.draw(scenes(kind)), data.draw(rules(method)), data.draw(cut_lists)
    assert same(expected(found, rule), actual(cut(found, cuts), rule))


@contextmanager
def tight_limits() -> Iterator[None]:
    """Let every limit be reached by a handful of objects: portions, pairs at once, pairs before the strongest go."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in (
            (merge, "_PORTION", 5), (rivals, "_PAIRS", 4), (rivals, "_FEW", 2),
            (candidates, "_AT_ONCE", 3), (greedy, "_FEW", 1), (soft, "_FEW", 1),
        ):  # fmt: skip
            patch.setattr(module, name, value)
        yield


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_limit_of_memory_changes_the_result(method: str, data: st.DataObject) -> None:
    found, rule, cuts = data.draw(scenes("boxes", 40)), data.draw(rules(method)), data.draw(cut_lists)
    whole = actual(iter([Band(found, np.inf)]), rule)
    with tight_limits():
        assert same(whole, actual(cut(found, cuts), rule))
    assert same(expected(found, rule), whole)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_where_rows_are_cut_and_how_they_are_ordered_does_not_change_a_bit(method: str, data: st.DataObject) -> None:
    found, rule = data.draw(scenes("boxes", 40)), data.draw(rules(method))
    order = np.array(data.draw(st.permutations(range(len(found)))), int)
    first, second = (
        join([band.found for band in suppress(cut(part, data.draw(cut_lists)), rule)])
        for part in (found, found.take(order))
    )
    keys = [
        np.lexsort((*f.detections.boxes.T, f.tiles, f.detections.labels, f.detections.scores)) for f in (first, second)
    ]
    assert first.detections.boxes[keys[0]].tolist() == second.detections.boxes[keys[1]].tolist()
    assert first.detections.scores[keys[0]].tolist() == second.detections.scores[keys[1]].tolist()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_what_is_handed_out_lies_below_what_was_called_settled(method: str, data: st.DataObject) -> None:
    found, rule, cuts = data.draw(scenes("boxes")), data.draw(rules(method)), data.draw(cut_lists)
    frontier = -np.inf
    for band in suppress(cut(found, cuts), rule):
        assert band.found.detections.boxes[:, 1].min(initial=np.inf) >= frontier
        frontier = max(frontier, band.frontier)


def plainly(boxes: np.ndarray, scores: np.ndarray) -> Found:
    n = len(boxes)
    return Found(
        make_detections(boxes, scores, np.zeros(n)), np.zeros(n, np.int64), np.zeros(n, np.int8), np.ones(n, bool)
    )


def mirror_images() -> Found:
    """Give pairs that are each other's mirror image: equal in score, tile and bounds."""
    shapes, scores, tiles = [], [], []
    for x, score, tile in ((0, 0.5, 3), (20, 0.5, 1), (40, 0.9, 2), (60, 0.4, 0)):
        shapes += [changed(shapely.box(x, 0, x + 8, 2), angle, "rotated") for angle in (30, -30)]
        scores += [score, score]
        tiles += [tile, tile]
    n = len(shapes)
    boxes = np.repeat(shapely.bounds(shapes[::2]), 2, axis=0)
    d = make_detections(boxes, np.array(scores), np.zeros(n), shapes=shapes)
    return Found(d, np.array(tiles), np.zeros(n, np.int8), np.ones(n, bool))


@given(st.permutations(range(8)))
def test_of_mirror_images_the_same_one_stays_in_whatever_order_they_come(order: list[int]) -> None:
    found, rule = mirror_images(), Rule(0.1)
    ways = [join([b.found for b in suppress([Band(f, np.inf)], rule)]) for f in (found, found.take(np.array(order)))]
    first, second = ([shape.wkb for shape in way.detections.shapes] for way in ways)
    assert 4 == len(first)
    assert first == second
    scores = ways[1].detections.scores.tolist()
    assert sorted(scores, reverse=True) == scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_very_many_boxes_on_one_spot_are_one_object_and_fit_into_memory(method: str, is_cut: bool) -> None:
    n = 50_000
    found = plainly(np.tile([[5.0, 5, 50, 50]], (n, 1)), np.linspace(0.3, 0.9, n))
    bands = [Band(found.take(np.arange(k, n, 10)), 5.0 if k < 9 else np.inf) for k in range(10)]
    tracemalloc.start()
    (row,) = actual(iter(bands if is_cut else [Band(found, np.inf)]), Rule(0.5, method=method, threshold=0.1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (5, 5, 50, 50, 45 * 45, 0.9) == row[2:]
    assert peak < 200e6  # one bit a pair would be 156 MB


@pytest.mark.parametrize("method", METHODS)
def test_a_long_chain_in_which_each_waits_for_the_next_is_decided(method: str) -> None:
    n = 4000
    x = np.arange(n) * 3.0
    found = plainly(np.stack([x, 0 * x, x + 10, 0 * x + 10], axis=1), np.linspace(0.3, 0.9, n))
    rule = Rule(0.5, method=method, threshold=0.29)
    result = actual(iter([Band(found, np.inf)]), rule)
    assert {"soft-nms": 1 < len(result) < n}.get(method, n // 2 == len(result))


def test_a_small_object_in_a_large_one_is_the_same_by_ios_only() -> None:
    found = plainly(np.array([[0.0, 0, 100, 100], [40, 40, 50, 50]]), np.array([0.9, 0.8]))
    kept = {m: len(actual(iter([Band(found, np.inf)]), Rule(0.5, metric=m))) for m in ("iou", "ios")}
    assert {"iou": 2, "ios": 1} == kept


def test_an_object_found_in_three_pieces_is_whole_after_merging() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [4, 0, 14, 10], [-4, 0, 6, 10]])
    found = plainly(boxes, np.array([0.9, 0.8, 0.7]))
    assert [(-4, 0, 14, 10, 180, 0.9)] == [r[2:] for r in actual(iter([Band(found, np.inf)]), Rule(0.4, method="nmm"))]


def test_the_mean_box_leans_to_the_better_scores() -> None:
    found = plainly(np.array([[0.0, 0, 10, 10], [2, 0, 12, 10]]), np.array([0.75, 0.25]))
    assert [(0.5, 0, 10.5, 10, 100, 0.75)] == [
        r[2:] for r in actual(iter([Band(found, np.inf)]), Rule(0.4, method="wbf"))
    ]


def test_the_usual_arguments_are_the_usual_rule() -> None:
    usual = {
        "nms_overlap": 0.4,
        "threshold": 0.3,
        "merge_method": "nms",
        "merge_metric": "iou",
        "class_agnostic": False,
    }
    assert Rule(0.4, threshold=0.3) == rule_of(usual)
    assert rule_of(usual).is_usual
    for change in ({"merge_method": "wbf"}, {"merge_metric": "ios"}, {"class_agnostic": True}):
        assert not rule_of({**usual, **change}).is_usual


# -- Whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    random_network(folder / "model.onnx")
    write_definition(folder, "model.onnx", 2, arguments={"threshold": 0.6, "nms_overlap": 0.3})
    write_raster(folder / "raster.tif", noise(3, 160, 160, seed=4))
    return folder


def content(result: Result) -> np.ndarray:
    rows = np.column_stack([result.bounds, result.scores, result.labels])
    return rows[np.lexsort(rows.round(2).T)]


@pytest.mark.parametrize("arguments", [
    {"merge_method": "nmm"}, {"merge_method": "wbf"},
    {"merge_method": "soft-nms", "threshold": 0.52, "nms_overlap": 0.1},
    {"merge_metric": "ios", "class_agnostic": True},
])  # fmt: skip
def test_tiles_equal_one_pass_with_any_method(folder: Path, tmp_path: Path, arguments: dict[str, object]) -> None:
    plain = {name: value for name, value in arguments.items() if name in ("threshold", "nms_overlap")}
    usual, whole, tiled = (
        run(tmp_path / name, folder / "raster.tif", folder / "model.json", arguments={**size, **more})
        for name, size, more in (
            ("usual", {"tile_size": 160}, plain), ("whole", {"tile_size": 160}, arguments),
            ("tiled", {"tile_size": 96, "padding": 32}, arguments),
        )
    )  # fmt: skip
    assert tiled.summary["tiles"] > 1
    assert len(whole) > 10
    assert content(whole).shape == content(tiled).shape
    assert np.allclose(content(whole), content(tiled), rtol=0, atol=0.005)
    assert content(usual).tolist() != content(whole).tolist()


@pytest.mark.parametrize("members", [{}, {"run_nms": True, "max_overlap_ratio": 0.3}])
def test_a_network_that_suppresses_inside_is_looked_at_once_more_where_the_user_asks(
    folder: Path, tmp_path: Path, members: dict[str, object]
) -> None:
    # A network whose views are fused is dense no more.
    inside = {"test_time_augmentation": True, "tile_size": 96, "padding": 16, "threshold": 0.52}
    overlaps = []
    for name, more in (("usual", {}), ("asked", {"class_agnostic": True, "merge_metric": "ios"})):
        result = run(
            tmp_path / name, folder / "raster.tif", folder / "model.json", arguments={**inside, **more}, **members
        )
        a, b = (np.array(result.geometries)[index] for index in np.triu_indices(len(result), 1))
        common = shapely.area(shapely.intersection(a, b))
        overlaps.append(float((common / np.minimum(shapely.area(a), shapely.area(b))).max()))
    assert overlaps[1] <= 0.3 < overlaps[0]
