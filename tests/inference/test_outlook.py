"""The plan before the run: tiles counted as the run looks at them, a trial tile, a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import TOO_LARGE, JobError
from kestrel.inference.events import Canceled, Objects
from kestrel.inference.georeference import to_map
from kestrel.inference.jobs import JOURNAL_FILE
from kestrel.inference.outlook import duration, touched_tiles
from kestrel.inference.region import Region
from kestrel.inference.tiling import TileGrid, Window
from kestrel.tests.fixtures.onnx_graphs import cell_network
from kestrel.tests.fixtures.rasters import NORTH_UP, cells, info, write_raster
from kestrel.tests.fixtures.runs import Result, run, write_definition

ROTATED = Affine(0.4, 0.3, 500000, 0.3, -0.4, 5400000)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one band that finds bright cells in tiles of 64 pixels."""
    folder = tmp_path_factory.mktemp("model")
    cell_network(folder / "cells.onnx", 1)
    return write_definition(folder, "cells.onnx", 1, input={"scale": 1 / 255, "bands": [0]}, tile={"size": 64})


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 tiles, of which one has a bright cell."""
    return write_raster(tmp_path_factory.mktemp("raster") / "r.tif", cells(1, 32, 32, [(0, 3, 3)]))


def plan_texts(result: Result) -> str:
    return " ".join(message.text for message in result.messages("info") if message.id == "plan")


def mask_of(x0: float, y0: float, x1: float, y1: float) -> str:
    """Give the mask over a rectangle of pixels."""
    corners = to_map(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), NORTH_UP)
    return str(shapely.to_wkb(shapely.polygons(corners), hex=True))


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    area=st.tuples(*[st.integers(0, 399)] * 2, *[st.integers(1, 400)] * 2),
    tile=st.integers(1, 8),
    padding=st.integers(0, 3),
    hangs_over=st.booleans(),
)
def test_inner_boxes_are_the_inner_windows_of_the_tiles(
    size: tuple[int, int], area: tuple[int, int, int, int], tile: int, padding: int, hangs_over: bool
) -> None:
    window = Window(*area).intersect(Window(0, 0, *size))
    if window.width == 0 or window.height == 0:
        window = Window(0, 0, *size)
    padding = min(padding, (tile * 8 - 1) // 16)
    grid = TileGrid(*size, window, tile * 8, padding * 8, 8, hangs_over=hangs_over)
    boxes = grid.inner_boxes(np.arange(len(grid)))
    assert boxes.tolist() == [[t.inner.x, t.inner.y, t.inner.right, t.inner.bottom] for t in grid]


@given(
    center=st.tuples(st.floats(-50, 450), st.floats(-50, 450)), radius=st.floats(1, 200),
    transform=st.sampled_from([NORTH_UP, ROTATED]),
)  # fmt: skip
def test_the_tiles_counted_are_those_that_the_run_looks_at(
    center: tuple[float, float], radius: float, transform: Affine
) -> None:
    place = to_map(np.array([center]), transform)[0]
    shape = shapely.buffer(shapely.points(place), radius / 2)
    shapely.prepare(shape)
    raster = info(400, 400, transform)
    grid = TileGrid(400, 400, Window(0, 0, 400, 400), 64, 8, 8)
    region = Region(raster, Window(0, 0, 400, 400), shape)
    wanted = [tile.number for tile in grid if region.touches(tile)]
    touched = touched_tiles(grid, region)
    assert (touched.numbers.tolist(), touched.count, touched.is_counted) == (wanted, len(wanted), True)


def test_a_very_large_grid_is_estimated_from_a_sample() -> None:
    side = 2**31 - 1
    shape = shapely.box(500000, 5400000 - side / 4, 500000 + side / 4, 5400000)
    shapely.prepare(shape)
    grid = TileGrid(side, side, Window(0, 0, side, side), 512, 64, 8)
    touched = touched_tiles(grid, Region(info(side, side), Window(0, 0, side, side), shape))
    assert not touched.is_counted
    assert touched.count == pytest.approx(len(grid) / 4, rel=0.03)


def test_the_plan_tells_pixels_tiles_time_and_memory_before_the_first_tile(
    tmp_path: Path, raster: Path, model: Path
) -> None:
    result = run(tmp_path / "job", raster, model)
    text = plan_texts(result)
    assert "The raster has 256 x 256 pixels of 0.5 m on the ground: 16 tiles." in text
    assert "A trial tile says: about" in text
    assert "of memory" in text
    kinds = [type(event).__name__ for event in result.events]
    assert kinds.index("Progress") > max(i for i, kind in enumerate(kinds) if kind == "Message")
    assert (result.summary["plan"]["tiles"], len(result)) == (16, 1)


def test_tiles_outside_the_mask_are_counted_and_not_tried(tmp_path: Path, raster: Path, model: Path) -> None:
    result = run(tmp_path / "job", raster, model, mask_wkb=mask_of(10, 10, 60, 250))
    assert "of which 50 x 240 are searched" in plan_texts(result)
    diagonal = shapely.union_all([shapely.from_wkb(mask_of(p, p, p + 20, p + 20)) for p in (10, 210)])
    result = run(tmp_path / "other", raster, model, mask_wkb=shapely.to_wkb(diagonal, hex=True))
    plan = result.summary["plan"]
    assert (plan["tiles"], plan["outside"]) == (2, result.summary["tiles_by_state"]["outside"])
    assert f"{plan['outside']} outside the searched area that are skipped" in plan_texts(result)


def test_a_short_run_is_not_held_up_by_a_trial(tmp_path: Path, model: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", cells(1, 16, 16, []))
    assert run(tmp_path / "job", raster, model).summary["plan"]["seconds"] is None


def test_only_planned_nothing_is_searched_or_written(tmp_path: Path, raster: Path, model: Path) -> None:
    result = run(tmp_path / "job", raster, model, plan_only=True, max_tiles=1)
    assert result.summary["plan"]["tiles"] == 16
    assert result.summary["plan"]["seconds"] > 0
    assert not any(isinstance(event, Objects) for event in result.events)
    assert "objects" not in result.summary
    assert not (tmp_path / "job" / JOURNAL_FILE).exists()


def test_a_trial_tile_is_looked_for_where_there_is_data(tmp_path: Path, model: Path) -> None:
    pixels = np.zeros((1, 512, 512), np.uint8)
    empty = write_raster(tmp_path / "empty.tif", pixels, nodata=0)
    pixels[0, :128] = 100  # an eighth of the way and a quarter lie in it, the middle does not
    half = write_raster(tmp_path / "half.tif", pixels, nodata=0)
    assert run(tmp_path / "a", empty, model, plan_only=True).summary["plan"]["seconds"] is None
    assert run(tmp_path / "b", half, model, plan_only=True).summary["plan"]["seconds"] > 0


def test_a_plan_over_the_limit_is_refused_with_tiles_and_time(tmp_path: Path, raster: Path, model: Path) -> None:
    says = r"look at 16 tiles and take about 1 s; the limit is 15.*raise Maximum number of tiles to go on"
    with pytest.raises(JobError, match=says) as caught:
        run(tmp_path / "job", raster, model, max_tiles=15)
    assert (caught.value.context["tiles"], caught.value.context["reason"]) == (16, TOO_LARGE)
    assert not (tmp_path / "job" / JOURNAL_FILE).exists()
    assert len(run(tmp_path / "job", raster, model, max_tiles=16)) == 1


def test_tiles_outside_the_mask_do_not_count_for_the_limit(tmp_path: Path, raster: Path, model: Path) -> None:
    diagonal = shapely.union_all([shapely.from_wkb(mask_of(p, p, p + 20, p + 20)) for p in (10, 210)])
    members = {"mask_wkb": shapely.to_wkb(diagonal, hex=True), "max_tiles": 2}
    assert run(tmp_path / "job", raster, model, **members).summary["plan"]["tiles"] == 2


def test_the_limit_does_not_change_what_a_run_is_taken_up_again_by(tmp_path: Path, raster: Path, model: Path) -> None:
    first = run(tmp_path / "job", raster, model, max_tiles=16)
    again = run(tmp_path / "job", raster, model, max_tiles=1000)
    assert first.content() == again.content()


def test_a_cancel_during_the_plan_is_a_cancel(tmp_path: Path, raster: Path, model: Path) -> None:
    with pytest.raises(Canceled):
        run(tmp_path / "job", raster, model, plan_only=True, is_cancelled=lambda: True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (5399, "90 min"),
        (5400, "2 h"),
        (172_799, "48 h"),
        (500_000, "6 days"),
    ],
)
def test_durations_are_told_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
