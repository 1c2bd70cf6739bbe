from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import JobError
from kestrel.inference.job import DetectionJob, RasterItem
from kestrel.inference.region import make_region
from kestrel.inference.tiling import TileGrid, Window
from kestrel.tests.fixtures.rasters import NORTH_UP, info

JOB = DetectionJob("a", (RasterItem("gdal", "/r.tif"),), "/m.dlpk")
TRANSFORMS = {
    "north up": NORTH_UP,
    "south up": Affine(0.5, 0, 500000, 0, 0.5, 5400000),
    "mirrored": Affine(-0.5, 0, 500000, 0, -0.5, 5400000),
    "degrees": Affine(1e-5, 0, 179.9, 0, -1e-5, 60),
}
ROTATED = Affine.translation(500000, 5400000) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5)


def extent_of(transform: Affine, x: float, y: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    corners = np.array([transform @ corner for corner in ((x, y), (right, bottom))])
    (xmin, ymin), (xmax, ymax) = corners.min(axis=0), corners.max(axis=0)
    return float(xmin), float(ymin), float(xmax), float(ymax)


def test_without_extent_and_mask_all_of_the_raster_is_searched() -> None:
    region = make_region(JOB, info(300, 200))
    assert (Window(0, 0, 300, 200), None) == (region.window, region.shape)
    assert region.contains(np.array([[-5.0, 5.0], [10.0, 10.0]])).all()


@pytest.mark.parametrize("name", TRANSFORMS)
@given(x=st.integers(0, 298), y=st.integers(0, 198), width=st.integers(1, 300), height=st.integers(1, 200))
def test_an_extent_on_pixel_edges_gives_exactly_these_pixels(
    name: str, x: int, y: int, width: int, height: int
) -> None:
    right, bottom = min(300, x + width), min(200, y + height)
    transform = TRANSFORMS[name]
    job = replace(JOB, extent=extent_of(transform, x, y, right, bottom))
    assert Window(x, y, right - x, bottom - y) == make_region(job, info(300, 200, transform)).window


def test_an_extent_that_cuts_pixels_takes_them_whole() -> None:
    job = replace(JOB, extent=extent_of(NORTH_UP, 10.4, 20.6, 30.4, 40.6))
    assert Window(10, 20, 21, 21) == make_region(job, info(300, 200)).window


def test_an_extent_that_hangs_over_is_clipped() -> None:
    job = replace(JOB, extent=extent_of(NORTH_UP, -50, -50, 20, 30))
    assert Window(0, 0, 20, 30) == make_region(job, info(300, 200)).window


@pytest.mark.parametrize("place", [(-50, 0, -1, 20), (0, 200, 20, 300), (300, 0, 400, 20), (0, -30, 20, 0)])
def test_an_extent_beside_the_raster_is_refused(place: tuple[int, int, int, int]) -> None:
    with pytest.raises(JobError, match="outside the raster"):
        make_region(replace(JOB, extent=extent_of(NORTH_UP, *place)), info(300, 200))


def test_an_extent_beside_the_mask_is_refused() -> None:
    mask = shapely.box(*extent_of(NORTH_UP, 100, 100, 120, 120))
    for transform, extent in (
        (NORTH_UP, extent_of(NORTH_UP, 10, 10, 90, 90)),
        (ROTATED, (500030.0, 5399960.0, 500049.0, 5399980.0)),
    ):
        with pytest.raises(JobError, match="outside the raster"):
            make_region(replace(JOB, extent=extent, mask_wkb=mask.wkb_hex), info(300, 200, transform))


def test_a_rotated_raster_is_searched_inside_the_extent_and_not_in_the_corners_of_its_pixels() -> None:
    extent = (500010.0, 5399990.0, 500030.0, 5400010.0)
    region = make_region(replace(JOB, extent=extent), info(300, 200, ROTATED))
    anchors = np.random.default_rng(0).uniform(0, 120, (300, 2))
    places = np.array([ROTATED @ tuple(anchor) for anchor in anchors])
    expected = (places >= extent[:2]).all(axis=1) & (places <= extent[2:]).all(axis=1)
    assert expected.any()
    assert expected.tolist() == region.contains(anchors).tolist()
    window = region.window
    inside = anchors[expected]
    assert (inside >= [window.x, window.y]).all() and (inside <= [window.right, window.bottom]).all()


def test_a_mask_holds_the_anchors_that_lie_in_its_polygons() -> None:
    mask = shapely.Point(500050, 5399960).buffer(20)
    region = make_region(replace(JOB, mask_wkb=mask.wkb_hex), info(300, 200))
    anchors = np.random.default_rng(1).uniform(0, 200, (200, 2))
    expected = [bool(mask.covers(shapely.Point(NORTH_UP @ tuple(anchor)))) for anchor in anchors]
    assert any(expected)
    assert expected == region.contains(anchors).tolist()


@given(st.integers(0, 250), st.integers(0, 150), st.integers(2, 60))
def test_a_tile_is_touched_by_the_mask_when_it_can_own_something_in_it(x: int, y: int, radius: int) -> None:
    mask = shapely.Point(NORTH_UP @ (x, y)).buffer(radius / 2)
    region = make_region(replace(JOB, mask_wkb=mask.wkb_hex), info(300, 200))
    grid = TileGrid(300, 200, region.window, 64, 16, 8)
    anchors = np.random.default_rng(0).uniform((0, 0), (300, 200), (2000, 2))
    counted = anchors[region.contains(anchors)]
    for tile in grid:
        if grid.owns(tile, counted).any():
            assert region.touches(tile)


def test_a_tile_far_from_the_mask_is_not_touched() -> None:
    mask = shapely.union(shapely.Point(500005, 5399995).buffer(2), shapely.Point(500140, 5399910).buffer(2))
    region = make_region(replace(JOB, mask_wkb=mask.wkb_hex), info(300, 200))
    grid = TileGrid(300, 200, region.window, 64, 0, 8)
    assert [0, len(grid) - 1] == [tile.number for tile in grid if region.touches(tile)]


@pytest.mark.parametrize(
    "wkb",
    ["", "no hex", "00", shapely.Point(1, 2).wkb_hex, shapely.LineString([(0, 0), (5, 5)]).wkb_hex,
     shapely.Polygon().wkb_hex, shapely.Polygon([(0, 0), (1, 1), (0, 0)]).wkb_hex,
     shapely.box(0, 0, float("inf"), 1).wkb_hex, shapely.Polygon([(0, 0), (1, float("nan")), (1, 1)]).wkb_hex],
)  # fmt: skip
def test_a_mask_that_is_no_area_is_refused(wkb: str) -> None:
    with pytest.raises(JobError):
        make_region(replace(JOB, mask_wkb=wkb), info(300, 200))


def test_a_mask_with_a_crossing_ring_is_mended() -> None:
    bow = shapely.Polygon([(500010, 5399990), (500030, 5399970), (500030, 5399990), (500010, 5399970)])
    region = make_region(replace(JOB, mask_wkb=bow.wkb_hex), info(300, 200))
    assert [True, True, False] == region.contains(np.array([[25.0, 40.0], [55.0, 40.0], [40.0, 22.0]])).tolist()
