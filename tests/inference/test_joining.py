"""Outlines that seams cut: tiles give the objects that one pass over the whole raster gives."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kestrel.inference.detections import (
    Detections,
    concatenate,
    make_detections,
    no_detections,
    of_dimension,
    shapes_of,
)
from kestrel.inference.events import Canceled
from kestrel.inference.joining import join_fragments
from kestrel.inference.merge import Band, Found
from kestrel.inference.outlines import outline
from kestrel.inference.tiling import TileGrid, Window
from kestrel.tests.fixtures.rasters import write_raster
from kestrel.tests.fixtures.runs import CancelAfter, Result, run
from kestrel.tests.fixtures.segmenter import Segmenter, write_segmenter

pytestmark = pytest.mark.slow

WHOLE = {"tile_size": 8192}
TILINGS = [
    {"tile_size": 64, "padding": 16}, {"tile_size": 96, "padding": 8}, {"tile_size": 50, "padding": 20},
    {"tile_size": 32, "padding": 1}, {"tile_size": 48, "padding": 16},
]  # fmt: skip


@pytest.fixture
def detect_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Detect in an image (H, W) of values; give the result."""
    number = iter(range(10**6))

    def call(image: NDArray[np.uint8], arguments: dict[str, Any], detector: Any = None, **members: Any) -> Result:
        folder = tmp_path / str(next(number))
        folder.mkdir()
        model = write_segmenter(folder, monkeypatch, detector)
        raster = write_raster(folder / "raster.tif", image[None])
        return run(folder / "job", raster, model, arguments=arguments, **members)

    return call


def scene() -> NDArray[np.uint8]:
    """Blobs, long bars, a ring, a hook and a comb, crossings where four tiles meet, neighbours 1 and 2 pixels apart."""
    image = np.zeros((230, 270), np.uint8)
    rows, columns = np.mgrid[0:230, 0:270]
    for value, (y, x, radius) in enumerate(((20, 20, 9), (64, 200, 13), (96, 96, 17), (150, 60, 20), (5, 262, 12)), 1):
        image[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = value
    image[120:124, 3:267] = 7  # a hedge over all columns of tiles
    image[30:34, 40:180] = 8
    image[36:40, 40:180] = 9  # 2 pixels beside it
    image[41:44, 44:170] = 10  # 1 pixel beside that
    ring = np.hypot(rows - 180, columns - 190)
    image[(ring < 40) & (ring > 26)] = 11
    image[ring < 20] = 12  # an island in its hole
    image[130:228, 12:15] = 13
    for index, y in enumerate(range(200, 226, 6)):  # a comb whose teeth meet in one tile only
        image[y : y + 3, 15 : 100 + index] = 13
    image[60:110, 230:236] = image[104:110, 200:236] = image[80:110, 200:204] = 14  # a hook
    return image


def is_same(expected: Result, actual: Result, least: float = 0.999999) -> bool:
    """Tell whether each object has exactly one partner."""
    first, second = expected.geometries, actual.geometries
    i, j = shapely.STRtree(second).query(first)
    common = shapely.area(shapely.intersection(np.array(first)[i], np.array(second)[j]))
    union = shapely.area(np.array(first)[i]) + shapely.area(np.array(second)[j]) - common
    same = (common > least * union) & (np.array(expected.labels)[i] == np.array(actual.labels)[j])
    return len(first) == len(second) and sorted(i[same]) == list(range(len(first))) == sorted(j[same])


def n_points(result: Result) -> int:
    return int(shapely.get_num_coordinates(result.geometries).sum())


def n_cut(result: Result) -> int:
    return int(sum(part.is_cut.sum() for part in result.objects))


@pytest.mark.parametrize(("arguments", "drops_cut"), [*((t, True) for t in TILINGS), (TILINGS[0], False)])
def test_tiles_give_the_outlines_of_one_pass(detect_in: Any, arguments: dict[str, Any], drops_cut: bool) -> None:
    one = detect_in(scene(), WHOLE)
    many = detect_in(scene(), {**arguments, "exclude_pad_detections": drops_cut})
    assert (1, 13) == (one.summary["tiles"], len(one))
    assert many.summary["tiles"] > 6
    assert is_same(one, many)
    assert n_points(one) == n_points(many)  # no seam leaves a corner
    assert all(geometry.is_valid for geometry in many.geometries)
    assert [0.75] * len(many) == many.scores.tolist()
    if arguments["padding"] > 2:  # with less, what ends with the inner window may as well have been cut
        assert n_cut(one) == n_cut(many) == 1  # by the raster's own edge
    assert 4 * sum(geometry.area for geometry in many.geometries) == np.count_nonzero(scene())


def real_scene(shared_data: Path) -> NDArray[np.uint8]:
    """Trees and canopies as people drew them on a drone image, each with a value of its own."""
    (path,) = (shared_data / "masks_oamtcd").glob("*_coco.json")
    outlines = [
        (shapely.geometry.mapping(shapely.polygons(np.reshape(ring, (-1, 2)))), 2 * index + 1 + item["category_id"])
        for index, item in enumerate(json.loads(path.read_text(encoding="utf-8"))["annotations"])
        for ring in item["segmentation"]
    ]
    return rasterio.features.rasterize(outlines, (2048, 2048), dtype="uint8")


@pytest.mark.shared_data
@pytest.mark.parametrize("arguments", [
    {"tile_size": 512, "padding": 64}, {"tile_size": 256, "padding": 32}, {"tile_size": 160, "padding": 20},
])  # fmt: skip
def test_trees_and_canopies_of_a_real_scene_come_out_whole(
    detect_in: Any, shared_data: Path, arguments: dict[str, Any]
) -> None:
    image = real_scene(shared_data)
    one, many = detect_in(image, WHOLE), detect_in(image, arguments)
    assert len(one) >= 48
    assert is_same(one, many)


def coarse(found: Detections, image: NDArray[Any]) -> Detections:
    """Draw masks as Mask R-CNN does: 28 x 28 unsure values in a box that is off by some per cent of its size."""
    side, random = image.shape[-1], np.random.default_rng(int(image.sum()))
    boxes, keep, shapes = [], [], []
    for index, (shape, box) in enumerate(zip(shapes_of(found), found.boxes)):
        size = np.tile(box[2:] - box[:2], 2)
        x0, y0, x1, y1 = np.clip(np.rint(box + random.normal(0, 0.02, 4) * size), 0, side).astype(int)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
        fine = (np.arange(112) + 0.5) / 112
        x, y = np.meshgrid(x0 + fine * (x1 - x0), y0 + fine * (y1 - y0))
        mask = shapely.contains_xy(shape, x, y).reshape(28, 4, 28, 4).mean((1, 3)) + random.normal(0, 0.15, (28, 28))
        rows, columns = (np.arange(n) * 28 // n for n in (y1 - y0, x1 - x0))
        drawn = outline(mask[np.ix_(rows, columns)] >= 0.5, x0, y0)
        if drawn is not None:
            boxes.append([x0, y0, x1, y1])
            keep.append(index)
            shapes.append(drawn)
    kept = found.take(np.array(keep, int))
    return make_detections(boxes, kept.scores, kept.labels, shapes=shapes) if shapes else no_detections()


@pytest.mark.shared_data
@pytest.mark.parametrize("arguments", [{"tile_size": 256, "padding": 32}, {"tile_size": 160, "padding": 20}])
def test_coarse_masks_of_a_real_scene_are_joined_to_as_many_objects(
    detect_in: Any, shared_data: Path, arguments: dict[str, Any]
) -> None:
    image = real_scene(shared_data)
    one, many = detect_in(image, WHOLE), detect_in(image, arguments, Segmenter(change=coarse))
    assert is_same(one, many, 0.8)


def blobs(seed: int, height: int, width: int, n: int) -> NDArray[np.uint8]:
    """Give overlapping rectangles and rings of random sizes."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width), np.uint8)
    rows, columns = np.mgrid[0:height, 0:width]
    for value in range(1, n + 1):
        y, x = random.integers(0, height), random.integers(0, width)
        tall, wide = random.integers(1, 60, 2)
        if value % 3:
            image[y : y + tall, x : x + wide] = value
        else:
            distance = np.hypot((rows - y) / tall, (columns - x) / wide)
            image[(distance < 1) & (distance > 0.6)] = value
    return image


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6), st.integers(20, 150), st.integers(20, 150), st.integers(1, 14), st.integers(32, 90),
    st.integers(1, 15),
)  # fmt: skip
def test_whatever_the_objects_and_tiles_the_result_is_that_of_one_pass(
    detect_in: Any, seed: int, height: int, width: int, n: int, tile_size: int, padding: int
) -> None:
    image = blobs(seed, height, width, n)
    one = detect_in(image, WHOLE)
    many = detect_in(image, {"tile_size": tile_size, "padding": padding})
    assert is_same(one, many) if len(one) else len(many) == 0


def test_augmentation_and_a_second_suppression_leave_joined_objects_as_they_are(detect_in: Any) -> None:
    one = detect_in(scene(), WHOLE)
    many = detect_in(scene(), {**TILINGS[0], "test_time_augmentation": True}, run_nms=True, max_overlap_ratio=0.0)
    assert is_same(one, many)


def test_batches_threads_and_interruptions_change_nothing(
    detect_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detect_in(scene(), TILINGS[0])
    batched = detect_in(scene(), {**TILINGS[0], "batch_size": 7}, parallel_processing_factor="4")
    assert whole.content() == batched.content()
    model, raster = write_segmenter(tmp_path, monkeypatch), write_raster(tmp_path / "raster.tif", scene()[None])
    for n_tiles in (5, 17):
        with pytest.raises(Canceled):
            run(
                tmp_path / "job",
                raster,
                model,
                arguments=TILINGS[0],
                is_cancelled=CancelAfter(tmp_path / "job", n_tiles),
            )
    assert whole.content() == run(tmp_path / "job", raster, model, arguments=TILINGS[0]).content()


def test_an_extent_and_a_mask_give_the_objects_whose_middle_lies_in_them(detect_in: Any) -> None:
    one = detect_in(scene(), WHOLE)
    extent = (500000 + 10, 5400000 - 70, 500000 + 72, 5400000 - 3)  # columns 20 to 144, rows 6 to 140
    expected = [g for g in one.geometries if shapely.box(*extent).contains(shapely.box(*g.bounds).centroid)]
    for members in ({"extent": extent}, {"mask_wkb": shapely.box(*extent).wkb_hex}):
        many = detect_in(scene(), {"tile_size": 64, "padding": 16, "exclude_pad_detections": False}, **members)
        assert len(expected) == len(many) == 6
        for geometry in many.geometries:  # what lies beyond is seen as far as the padding goes
            inside = shapely.box(*extent).intersection(geometry)
            assert any(inside.equals(shapely.box(*extent).intersection(other)) for other in expected)


def test_a_mask_that_wavers_at_the_edge_of_the_view_still_becomes_one_smooth_object(detect_in: Any) -> None:
    def waver(found: Detections, image: NDArray[Any]) -> Detections:
        side, margin = image.shape[-1], 1 + int(image.sum()) % 3  # of each tile another
        view = shapely.box(margin, margin, side - margin, side - margin)
        shapes = [of_dimension(shape.intersection(view), 2) for shape in shapes_of(found)]
        keep = np.array([not shape.is_empty for shape in shapes], bool)
        return make_detections(found.boxes, found.scores, found.labels, shapes=shapes).take(keep)

    image = np.pad(scene(), 8)
    one, many = detect_in(image, WHOLE), detect_in(image, {"tile_size": 64, "padding": 12}, Segmenter(change=waver))
    assert is_same(one, many, 0.95)


def moved(found: Detections, image: NDArray[Any]) -> Detections:
    """Misplace outlines by up to a pixel and a half, in each tile in another direction."""
    angle = int(image.sum()) % 7
    return found.shift(1.5 * np.cos(angle), 1.5 * np.sin(angle))


@pytest.mark.parametrize("drops_cut", [True, False])
def test_tiles_that_disagree_by_a_pixel_give_each_object_once(detect_in: Any, drops_cut: bool) -> None:
    image = np.zeros((200, 300), np.uint8)
    for index, (y, x) in enumerate(itertools.product(range(10, 180, 45), range(10, 280, 45))):
        image[y : y + 30, x : x + 30] = 2 * index + 1 if (x + y) % 2 else 2 * index + 2
    image[0:8, 20:280] = 99
    arguments = {"tile_size": 64, "padding": 14, "exclude_pad_detections": drops_cut}
    one, many = detect_in(image, WHOLE), detect_in(image, arguments, Segmenter(change=moved))
    assert is_same(one, many, 0.6)
    assert ["Polygon"] * len(many) == [geometry.geom_type for geometry in many.geometries]
    assert not any(geometry.interiors for geometry in many.geometries)


def test_what_shows_in_the_padding_alone_belongs_to_the_neighbour(detect_in: Any) -> None:
    def with_phantom(found: Detections, image: NDArray[Any]) -> Detections:
        phantom = make_detections([[2, 20, 9, 27]], [0.9], [0], shapes=[shapely.box(2, 20, 9, 27)])
        return concatenate([found, phantom])

    image = np.zeros((64, 200), np.uint8)
    many = detect_in(image, {"tile_size": 64, "padding": 10}, Segmenter(change=with_phantom))
    assert many.summary["tiles"] == 5
    assert {501.0} == {round(geometry.bounds[0] - 499500.0, 6) for geometry in many.geometries}  # of the first column


@pytest.mark.parametrize(("drops_cut", "expected"), [(True, 0), (False, 1)])
def test_what_no_other_tile_goes_on_with_is_dropped_or_marked_as_cut(
    detect_in: Any, drops_cut: bool, expected: int
) -> None:
    def one_eyed(found: Detections, image: NDArray[Any]) -> Detections:
        return found if image[0, 0, 0] else no_detections()  # the first tile alone sees anything

    image = np.zeros((64, 120), np.uint8)
    image[20:30, 20:115] = image[0, 0] = 3
    many = detect_in(
        image, {"tile_size": 64, "padding": 10, "exclude_pad_detections": drops_cut}, Segmenter(change=one_eyed)
    )
    bars = [geometry for geometry in many.geometries if geometry.area > 1]
    assert expected == len(bars) == n_cut(many) - 1  # and the pixel in the raster's corner
    assert all((500010, 500032) == geometry.bounds[::2] for geometry in bars)


def test_without_padding_only_what_fits_together_along_the_seam_is_joined(detect_in: Any) -> None:
    image = np.zeros((80, 160), np.uint8)
    image[10:22, 5:155] = 2
    image[30:50, 20:40], image[45:49, 40:60] = 4, 6  # a roof and a hedge, each up to the seam at column 40
    one, many = detect_in(image, WHOLE), detect_in(image, {"tile_size": 40, "padding": 0})
    assert 3 == len(one)
    assert is_same(one, many)


def test_objects_leave_the_sweep_as_soon_as_no_later_row_can_reach_them() -> None:
    grid = TileGrid(64, 44 * 200 + 20, Window(0, 0, 64, 44 * 200 + 20), 64, 10, 1)

    def bands(seen: list[int]) -> Iterator[Band]:
        for tile in grid:
            # A square inside each tile, one across each seam, and in the whole left margin a hedge without an end.
            y0, y1 = tile.outer.y, tile.outer.bottom
            tops = [y0 + 20, *([y0 + 6] if y0 else []), *([y1 - 14] if y1 < grid.height else [])]
            boxes = np.array([*([20, top, 28, top + 8] for top in tops), [0, y0, 4, y1]], float)
            found = make_detections(boxes, np.ones(len(boxes)), np.zeros(len(boxes)), shapes=shapely.box(*boxes.T))
            n = len(found)
            seen.append(tile.number)
            frontier = y1 - 20.0 if y1 < grid.height else np.inf
            yield Band(Found(found, np.full(n, tile.number), np.zeros(n, np.int8), np.ones(n, bool)), frontier)

    seen: list[int] = []
    total = 0
    for band in join_fragments(bands(seen), grid, 8.0, drops_cut=True):
        total += len(band.found)
        assert total >= 2 * len(seen) - 2 or len(seen) == 1
    assert (200, 400) == (len(seen), total)
    assert band.found.detections.boxes[:, 3].max() == grid.height  # the hedge, at last, as one


def joined(grid: TileGrid, *fragments: tuple[int, shapely.Polygon, float], drops_cut: bool = True) -> Found:
    tiles, shapes, scores = zip(*fragments)
    n = len(shapes)
    detections = make_detections(shapely.bounds(shapes), scores, np.zeros(n), shapes=shapes)
    found = Found(detections, np.array(tiles), np.zeros(n, np.int8), np.ones(n, bool))
    (band,) = join_fragments([Band(found, np.inf)], grid, 8.0, drops_cut=drops_cut)
    return band.found


PAIR = TileGrid(108, 64, Window(0, 0, 108, 64), 64, 10, 1)  # views: columns 0 to 64 and 44 to 108, seam at 54


def test_each_side_of_a_seam_is_as_its_own_tile_sees_it() -> None:
    thick = shapely.union(shapely.box(4, 10, 54, 20), shapely.box(54, 8, 64, 24))  # a poor end, in the padding
    found = joined(PAIR, (0, thick, 0.9), (1, shapely.box(44, 10, 94, 20), 0.5))
    assert [shapely.box(4, 10, 94, 20).normalize()] == list(found.detections.shapes)
    assert [pytest.approx(0.9 * 50 / 90 + 0.5 * 40 / 90)] == found.detections.scores.tolist()
    assert ([0], [False]) == (found.tiles.tolist(), found.is_cut.tolist())


def test_what_one_tile_sees_whole_is_taken_from_it_with_its_score() -> None:
    whole, cut = shapely.box(30, 10, 60, 20), shapely.box(44, 10.5, 60, 19.5)
    found = joined(PAIR, (0, whole, 0.6), (1, cut, 0.9))
    assert ([whole], [pytest.approx(0.6)]) == (list(found.detections.shapes), found.detections.scores.tolist())


def test_a_tile_that_takes_an_end_for_the_whole_does_not_shorten_the_object() -> None:
    found = joined(PAIR, (0, shapely.box(4, 10, 64, 20), 0.9), (1, shapely.box(48, 10, 70, 20), 0.9))
    assert [(4, 10, 70, 20)] == [shape.bounds for shape in found.detections.shapes]


def test_edges_that_are_no_whole_pixels_leave_no_gap() -> None:
    ends = [(x, 7 + x / 3.7) for x in (3.3, 64)], [(x, 7 + x / 3.7) for x in (44, 104.7)]
    first, second = (shapely.LineString(line).buffer(2.1, cap_style="flat") for line in ends)
    first, second = first.intersection(shapely.box(0, 0, 64, 64)), second.intersection(shapely.box(44, 0, 108, 64))
    (shape,) = joined(PAIR, (0, first, 1), (1, second, 1)).detections.shapes
    assert ("Polygon", 0) == (shape.geom_type, len(shape.interiors))
    expected = shapely.LineString([ends[0][0], ends[1][1]]).buffer(2.1, cap_style="flat")
    assert shape.symmetric_difference(expected).area < 0.05
